#!/usr/bin/env bash
# Licences, banned crates and sources. Takes cargo-deny from PATH, else builds it once into the cache (some minutes).
set -euo pipefail
cache=${XDG_CACHE_HOME:-$HOME/.cache}/postern
version=0.20.2
deny=$(command -v cargo-deny || true)
if [ -z "$deny" ]; then
  deny=$cache/deny-$version/bin/cargo-deny
  if [ ! -x "$deny" ]; then
    echo "building cargo-deny $version into the cache" >&2
    # The dev profile: it runs for a second and is built once.
    CARGO_TARGET_DIR=$cache/deny-target cargo install --quiet --locked --profile dev --version "$version" --root "$cache/deny-$version" cargo-deny >&2
    rm -rf "$cache/deny-target"
  fi
fi
cd "$(dirname "$0")/../.."
"$deny" --log-level error check licenses bans sources
