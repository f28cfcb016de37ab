#!/usr/bin/env bash
# agentk's image for amd64 or arm64 (this machine's, if none is named), as an OCI archive: target/image/agentk-ARCH.tar.
# Needs what tests/setup/image.sh installs, and no network beyond what cargo has not fetched yet. The image's date is that of
# the commit, so that the same commit, compiler and roots give the same image.
set -euo pipefail
cd "$(dirname "$0")/../.."
source deploy/images/machine.sh "$@"
: "${CARGO_TARGET_DIR:=target}"
image=$(pwd)/target/image
context=$image/$arch
archive=$image/agentk-$arch.tar
store=$(mktemp -d)
trap 'rm -rf "$store"' EXIT

if [ -n "$cross" ]; then
  name=${target//-/_}
  export "CC_$name=$cross-gcc" "CARGO_TARGET_${name^^}_LINKER=$cross-gcc"
fi
cargo build --release --locked --target "$target" -p postern-agent --bin agentk

rm -rf "$context" "$archive"
mkdir -p "$context"
# Symbols stay with cargo's file, for whoever wants to read a core.
"${cross:+$cross-}strip" -o "$context/agentk" "$CARGO_TARGET_DIR/$target/release/agentk"
# Debian's roots, and not those that somebody has added to this machine.
cat /usr/share/ca-certificates/mozilla/*.crt >"$context/ca-certificates.crt"
chmod 644 "$context/ca-certificates.crt"

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
commit=$(git describe --always --dirty --abbrev=40 --match '' 2>/dev/null || echo unknown)
date=$(git log -1 --format=%ct 2>/dev/null || echo 0)
# A store of its own: whatever images this machine has are neither used nor changed.
podman=(podman --runtime runc --root "$store/images" --runroot "$store/run" --storage-driver vfs)
"${podman[@]}" build --quiet --pull-never --format oci --platform "linux/$arch" --target built --timestamp "$date" \
  --label "org.opencontainers.image.version=$version" --label "org.opencontainers.image.revision=$commit" \
  -f deploy/images/agentk.Dockerfile -t "postern/agentk:$version" "$context" >/dev/null
"${podman[@]}" save --quiet --format oci-archive -o "$archive" "postern/agentk:$version"
printf '%s: postern/agentk:%s for %s, %s bytes; the program %s bytes\n' \
  "${archive#"$PWD/"}" "$version" "$arch" "$(stat -c %s "$archive")" "$(stat -c %s "$context/agentk")"
