#!/usr/bin/env bash
# Tests the image that deploy/images/build.sh has built for amd64 or arm64 (this machine's, if none is named). One for another
# kind of machine is looked at, but not run.
set -euo pipefail
cd "$(dirname "$0")/../.."
source deploy/images/machine.sh "$@"
arguments=(--nocapture)
if [ -n "$cross" ]; then
  echo "for $arch, and so looked at, but not run" >&2
  arguments+=(--skip it_runs)
fi
POSTERN_IMAGE=target/image/agentk-$arch.tar exec cargo test -p postern-tests --test image -- "${arguments[@]}"
