#!/usr/bin/env bash
# What building needs: a Rust toolchain, cmake, a C compiler, make and git. Installs what Debian has; names the rest.
set -euo pipefail

missing=()
command -v cmake >/dev/null || missing+=(cmake)
command -v cc >/dev/null || missing+=(build-essential)
command -v git >/dev/null || missing+=(git)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]}" >&2
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
  else
    echo "missing: ${missing[*]}; install these Debian packages (or your system's) and try again" >&2
    exit 1
  fi
fi

wanted=1.90
if ! command -v cargo >/dev/null; then
  echo "missing: a Rust toolchain, $wanted or newer; install it with rustup or your system's packages" >&2
  exit 1
fi
found=$(rustc --version | cut -d' ' -f2)
if [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n1)" != "$wanted" ]; then
  echo "rustc $found is too old; $wanted or newer is needed" >&2
  exit 1
fi
