#!/usr/bin/env bash
# What the tests need beside the build: Debian's kubectl, redis-server and ip, python with grpcio and websockets, node with
# grpc-js, haproxy, nginx and envoy, and the real control plane. All but system packages goes into the cache folder; nothing is left in the tree.
# Safe to run again and again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/postern
mkdir -p "$cache"
# The balancers that the edge is put behind. They wait for the same lock, and so come before it is taken.
"$here/peers.sh"
exec 9>"$cache/.setup.lock"
flock 9

as_root() {
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing: $*; install these Debian packages (or your system's) and try again" >&2
    exit 1
  fi
  echo "installing $*" >&2
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

missing=()
command -v python3 >/dev/null || missing+=(python3)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
command -v npm >/dev/null || missing+=(nodejs npm)
command -v tar >/dev/null || missing+=(tar)
command -v redis-server >/dev/null || missing+=(redis-server)
command -v ip >/dev/null || missing+=(iproute2)
[ ${#missing[@]} -eq 0 ] || as_root "${missing[@]}"

# Debian's kubectl, unpacked beside whatever kubectl the machine has: old enough to speak SPDY/3.1 only.
if [ ! -x "$cache/kubectl/usr/bin/kubectl" ]; then
  command -v apt-get >/dev/null || { echo "missing: Debian's kubernetes-client; put its kubectl at $cache/kubectl/usr/bin/kubectl" >&2; exit 1; }
  download=$(mktemp -d)
  trap 'rm -rf "$download"' EXIT
  (cd "$download" && { apt-get download -qq kubernetes-client >&2 2>/dev/null || { apt-get update -qq >&2 && apt-get download -qq kubernetes-client >&2; }; })
  rm -rf "$cache/kubectl.new"
  dpkg -x "$download"/kubernetes-client_*.deb "$cache/kubectl.new"
  rm -rf "$cache/kubectl"
  mv "$cache/kubectl.new" "$cache/kubectl"
fi

wanted=$(sha256sum "$here/requirements.txt" | cut -c1-16)
if [ ! -e "$cache/python/.$wanted" ]; then
  rm -rf "$cache/python"
  python3 -m venv "$cache/python"
  "$cache/python/bin/pip" install -q --disable-pip-version-check -r "$here/requirements.txt" >&2
  touch "$cache/python/.$wanted"
fi

wanted=$(sha256sum "$here/package.json" | cut -c1-16)
if [ ! -e "$cache/node/.$wanted" ]; then
  rm -rf "$cache/node"
  mkdir -p "$cache/node"
  cp "$here/package.json" "$cache/node/"
  (cd "$cache/node" && npm install --silent --no-audit --no-fund >&2)
  touch "$cache/node/.$wanted"
fi

"$here/../control-plane/build.sh" >&2
