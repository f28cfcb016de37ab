#!/usr/bin/env bash
# tests/control-plane/check.sh: proves the control plane with real clients: 'check.sh [KUBECTL...]' runs every check with
# each kubectl named (default: the one on PATH), then the ways to end it. Closes with 'N passed, N failed'.
set -uo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
[ $# -gt 0 ] || set -- kubectl
binary=${CONTROL_PLANE:-$("$here/build.sh" | tail -n 1)}
[ -x "$binary" ] || { echo "check.sh: there is no control-plane binary; see what build.sh said above" >&2; exit 1; }

work=$(mktemp -d)
passed=0 failed=0 pids=()
trap 'for p in "${pids[@]}"; do kill "$p" 2>/dev/null; done; wait 2>/dev/null; rm -rf -- "$work"' EXIT

ok() { passed=$((passed + 1)); printf 'ok      %s\n' "$*"; }
bad() { failed=$((failed + 1)); printf 'FAILED  %s\n' "$*"; }
# same WHAT WANTED GOT
same() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1: wanted '$2', got '$3'"; fi; }
# soon SECONDS COMMAND...: tries until it works
soon() { local end=$((SECONDS + $1)); shift; until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.1; done; }
# check WHAT COMMAND...
check() { local what=$1; shift; if "$@" >"$work/said" 2>&1; then ok "$what"; else bad "$what: $(tail -n 3 "$work/said")"; fi; }
sum() { sha256sum "$1" | cut -c1-64; }
has() { grep -q -- "$2" "$1"; }

# begin DIR ARGUMENT...: starts one and sets pid and began (milliseconds until ready)
begin() {
	local dir=$1 t0 t1; shift
	t0=$(date +%s%N)
	"$binary" --dir "$dir" "$@" >"$dir.out" 2>"$dir.err" &
	pid=$!
	pids+=("$pid")
	soon 120 grep -q '^ready ' "$dir.out" || { bad "it starts: $(tail -n 5 "$dir.err")"; exit 1; }
	t1=$(date +%s%N)
	began=$(((t1 - t0) / 1000000))
}
memory() { awk '/VmRSS/ { printf "%d", $2 / 1024 }' "/proc/$1/status"; }

begin "$work/cluster"
cluster=$pid
printf 'ready after %d ms, %s MiB\n' "$began" "$(memory "$cluster")"
same "one line on stdout" 1 "$(wc -l <"$work/cluster.out")"
same "the kubeconfigs are for their user only" "600 600" "$(stat -c %a "$work/cluster/admin.kubeconfig" "$work/cluster/agentk.kubeconfig" | xargs)"
export KUBECONFIG=$work/cluster/admin.kubeconfig
head -c 20000000 /dev/urandom >"$work/big"

for kubectl in "$@"; do
	k() { timeout 60 "$kubectl" --cache-dir="$work/cache" "$@"; }
	name=$("$kubectl" version --client 2>/dev/null | sed -n 's/.*\(GitVersion:"\|Client Version: \)v\([0-9.]*\).*/\2/p' | head -n 1)
	printf '\n== kubectl %s\n' "$name"
	ns=check-$RANDOM
	# What is waited for in these must not be the last round's.
	rm -f "$work"/{watched,followed,web,forward,back,get.*}
	check "create namespace" k create namespace $ns
	soon 10 k -n $ns get serviceaccount default || bad "the namespace's default account"
	cat >"$work/objects.yaml" <<-Y
		apiVersion: v1
		kind: ConfigMap
		metadata: {name: settings}
		data: {colour: blue}
		---
		apiVersion: v1
		kind: Pod
		metadata: {name: worker}
		spec:
		  containers:
		  - name: main
		    image: none
		    command: [sh, -c, 'n=0; while :; do n=\$((n+1)); echo line \$n; sleep 0.2; done']
		    env: [{name: GREETING, value: hello}]
		  - name: echo
		    image: none
		    stdin: true
	Y
	check "apply --server-side" k -n $ns apply --server-side -f "$work/objects.yaml"
	check "apply --server-side again" k -n $ns apply --server-side -f "$work/objects.yaml"
	check "the pod gets ready" k -n $ns wait --for=condition=Ready pod/worker --timeout=20s
	same "get -o jsonpath" "blue postern-node" "$(k -n $ns get configmap settings -o jsonpath='{.data.colour}') $(k -n $ns get pod worker -o jsonpath='{.spec.nodeName}')"

	timeout 60 "$kubectl" -n $ns get configmap -w -o name >"$work/watched" 2>/dev/null &
	watcher=$!; pids+=("$watcher")
	soon 10 has "$work/watched" settings
	k -n $ns create configmap later >/dev/null
	if soon 10 has "$work/watched" later; then ok "get -w sees a new object"; else bad "get -w: $(cat "$work/watched")"; fi
	kill "$watcher"; wait "$watcher" 2>/dev/null

	timeout 60 "$kubectl" -n $ns logs -f worker -c main --tail=1 >"$work/followed" 2>&1 &
	follower=$!; pids+=("$follower")
	if soon 10 eval '[ "$(wc -l <"$work/followed")" -ge 5 ]'; then ok "logs -f gets new lines"; else bad "logs -f: $(cat "$work/followed")"; fi
	kill "$follower"; wait "$follower" 2>/dev/null
	same "logs from the start" "line 1" "$(k -n $ns logs worker -c main | head -n 1)"

	same "exec -i passes stdin on, and its end" "ABC hello" "$(printf 'abc' | k -n $ns exec -i worker -c main -- sh -c 'tr a-z A-Z; echo " $GREETING"')"
	k -n $ns exec worker -c main -- sh -c 'echo out; echo err >&2; exit 7' >"$work/out" 2>"$work/err"
	same "exec reports the exit code" 7 $?
	same "exec keeps stdout and stderr apart" "out err" "$(cat "$work/out") $(head -n 1 "$work/err")"
	k -n $ns exec worker -c main -- no-such-command >/dev/null 2>&1
	same "exec of a command that is not there" 127 $?
	same "exec passes 5 MB of stdout on" 5000000 "$(k -n $ns exec worker -c main -- head -c 5000000 /dev/zero | wc -c)"
	if command -v script >/dev/null; then
		same "exec -it has a terminal of the client's size" "33 99 tty" "$(script -qec "stty rows 33 cols 99; $kubectl -n $ns exec -it worker -c main -- sh -c 'sleep 0.3; stty size; test -t 0 && echo tty'" /dev/null </dev/null 2>/dev/null | tr -d '\r' | sed 's/^^@//' | xargs)"
	fi
	same "attach -i reaches the container's process" "over here" "$( (echo over here; sleep 1) | k -n $ns attach -i worker -c echo 2>/dev/null | grep over)"

	check "cp to the pod" k -n $ns cp "$work/big" worker:copied -c main
	check "cp from the pod" k -n $ns cp worker:copied "$work/back" -c main
	same "cp keeps 20 MB as they are" "$(sum "$work/big")" "$(sum "$work/back")"

	# A server on a port of this machine stands for one in the pod.
	(cd "$work" && exec python3 -u -m http.server --bind 127.0.0.1 0) >"$work/web" 2>&1 &
	web=$!; pids+=("$web")
	soon 10 has "$work/web" 'port [0-9]'
	port=$(sed -n 's/.* port \([0-9]*\).*/\1/p' "$work/web" | head -n 1)
	timeout 60 "$kubectl" -n $ns port-forward pod/worker ":$port" >"$work/forward" 2>&1 &
	forward=$!; pids+=("$forward")
	soon 10 has "$work/forward" 'Forwarding from 127'
	ours=$(sed -n 's/Forwarding from 127.0.0.1:\([0-9]*\).*/\1/p' "$work/forward")
	get() { python3 -c 'import sys, urllib.request, hashlib; print(hashlib.sha256(urllib.request.urlopen(sys.argv[1], timeout=30).read()).hexdigest())' "http://127.0.0.1:$ours/big"; }
	same "port-forward carries 20 MB" "$(sum "$work/big")" "$(get 2>&1 | tail -n 1)"
	for i in 1 2 3 4 5; do get >"$work/get.$i" 2>&1 & gets[i]=$!; done
	wait "${gets[@]}"
	same "port-forward carries five transfers side by side" 5 "$(grep -l "$(sum "$work/big")" "$work"/get.? | wc -l)"
	kill "$forward" "$web"; wait "$forward" "$web" 2>/dev/null

	check "a deployment" k -n $ns create deployment web --image=none
	check "its rollout" k -n $ns rollout status deployment/web --timeout=20s
	check "exec in a deployment" k -n $ns exec deploy/web -- true
	check "a job" k -n $ns create job once --image=none -- sh -c 'echo done by $HOSTNAME'
	check "its end" k -n $ns wait --for=condition=complete job/once --timeout=20s
	same "its log" "done by once" "$(k -n $ns logs job/once | cut -c1-12)"
	said=$(echo in | k -n $ns run passing --rm -i --restart=Never --image=none -- sh -c 'read x; echo got $x; sleep 1; exit 3' 2>/dev/null); code=$?
	same "run --rm -i gives output and exit code" "got in 3" "$(head -n 1 <<<"$said") $code"
	check "delete a pod" k -n $ns delete pod worker
	check "the garbage collector removes a deployment's pods" eval "k -n $ns delete deployment web && soon 20 eval '[ -z \"\$(k -n $ns get pods -l app=web -o name)\" ]'"
	same "the roles for people are filled in" "yes" "$(k -n $ns create rolebinding looks --clusterrole=view --user=eve >/dev/null && soon 10 k -n $ns auth can-i list pods --as eve && echo yes)"
	same "agentk may do everything" "yes" "$(k --kubeconfig "$work/cluster/agentk.kubeconfig" auth can-i '*' '*')"
	check "delete the namespace, to its end" k delete namespace $ns
done

printf '\n== ends\n'
printf '%s MiB after the checks\n' "$(memory "$cluster")"
# gone DIR PID: that nothing of it is left, neither files nor processes
gone() { [ ! -e "$1" ] && ! kill -0 "$2" 2>/dev/null && ! grep -qsaz "^POSTERN_CHECK=$3\$" /proc/[0-9]*/environ && ! pgrep -f "control-plane-janitor.* $1/" >/dev/null; }
# busy DIR MARK: a pod whose process detached itself from everything
busy() {
	kubectl --kubeconfig "$1/admin.kubeconfig" run busy --image=none --env=POSTERN_CHECK="$2" --restart=Never --command -- sh -c 'setsid sleep 1000 & sleep 1000' >/dev/null
	soon 20 eval "[ \$(grep -lsaz '^POSTERN_CHECK=$2\$' /proc/[0-9]*/environ | wc -l) -ge 3 ]" || bad "the busy pod runs"
}
finished() { local t0 t1; t0=$(date +%s%N); soon 10 gone "$@"; local r=$?; t1=$(date +%s%N); took=$(((t1 - t0) / 1000000)); return $r; }

busy "$work/cluster" "$cluster"
kill -TERM "$cluster"
if finished "$work/cluster" "$cluster" "$cluster"; then ok "SIGTERM leaves nothing ($took ms)"; else bad "SIGTERM leaves something: $(ls -A "$work/cluster" 2>&1)"; fi
wait "$cluster"; same "SIGTERM is an orderly end" 0 $?

begin "$work/killed"
busy "$work/killed" "$pid"
kill -KILL "$pid"; wait "$pid" 2>/dev/null
if soon 10 eval "[ -z \"\$(ls -A '$work/killed')\" ] && ! grep -qsaz '^POSTERN_CHECK=$pid\$' /proc/[0-9]*/environ"; then ok "SIGKILL leaves an empty directory"; else bad "SIGKILL leaves something: $(ls -A "$work/killed")"; fi

mkfifo "$work/stdin"
"$binary" --dir "$work/parent" --print-ready --exit-with-stdin <"$work/stdin" >"$work/parent.out" 2>&1 &
pid=$!; pids+=("$pid")
exec 8>"$work/stdin"
soon 60 has "$work/parent.out" '^ready '
busy "$work/parent" "$pid"
exec 8>&-
if finished "$work/parent" "$pid" "$pid"; then ok "the end of its stdin leaves nothing ($took ms)"; else bad "the end of its stdin leaves something: $(ls -A "$work/parent" 2>&1)"; fi

"$binary" --dir "$work/early" >/dev/null 2>&1 &
pid=$!; pids+=("$pid"); sleep 0.5; kill -TERM "$pid"
if finished "$work/early" "$pid" "$pid"; then ok "SIGTERM while starting leaves nothing ($took ms)"; else bad "SIGTERM while starting leaves something: $(ls -A "$work/early")"; fi

printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
