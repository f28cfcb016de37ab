# Sourced: from amd64, arm64 or nothing to `arch`, Rust's `target`, and `cross`, the prefix of the compiler where it is not
# this machine's own.
arch=${1:-}
case $(uname -m) in
x86_64) own=amd64 ;;
aarch64) own=arm64 ;;
*) own=unknown ;;
esac
arch=${arch:-$own}
case $arch in
amd64) machine=x86_64 ;;
arm64) machine=aarch64 ;;
*)
  echo "no image for $arch; it is built for amd64 and arm64" >&2
  exit 1
  ;;
esac
target=$machine-unknown-linux-musl
cross=
[ "$arch" = "$own" ] || cross=$machine-linux-gnu
