#!/usr/bin/env bash
# What `make image` needs beside the build: Debian's podman with runc (crun refuses machines with both kinds of cgroups),
# musl's gcc or the other machine's, and Rust's standard library for musl. Takes the image's machine, amd64 or arm64.
# Safe to run again and again, and then quiet.
set -euo pipefail
source "$(dirname "$0")/../../deploy/images/machine.sh" "$@"

missing=()
command -v podman >/dev/null || missing+=(podman)
command -v runc >/dev/null || missing+=(runc)
[ -d /usr/share/ca-certificates/mozilla ] || missing+=(ca-certificates)
if [ -z "$cross" ]; then
  command -v musl-gcc >/dev/null || missing+=(musl-tools)
else
  command -v "$cross-gcc" >/dev/null || missing+=("gcc-${cross//_/-}")
  # Headers: what is compiled in C uses few of them, and none of glibc's functions.
  [ -d "/usr/$cross/include" ] || missing+=("libc6-dev-$arch-cross")
fi
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]}; install these Debian packages (or your system's) and try again" >&2
    exit 1
  fi
  echo "installing ${missing[*]}" >&2
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
fi

if [ ! -d "$(rustc --print target-libdir --target "$target")" ]; then
  if ! command -v rustup >/dev/null; then
    echo "missing: Rust's standard library for $target; rustup has it, some systems as a package" >&2
    exit 1
  fi
  echo "installing Rust's standard library for $target" >&2
  rustup --quiet target add "$target" >&2
fi
