// tests/control-plane/processes.go: the local processes behind containers and execs: starting them, and above all ending
// every one of them, also those that left their process group, also when this program is killed.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
)

// Every process of a pod carries these in its environment, and so do its descendants, wherever they detach to: that is how
// they are found again. (Process groups alone would miss what calls setsid.)
const (
	runMark = "POSTERN_CONTROL_PLANE_RUN="
	podMark = "POSTERN_CONTROL_PLANE_POD="
)

type processes struct {
	id string
	// mu makes 'no process starts any more' and 'kill all' one step: starters hold it for reading.
	mu     sync.RWMutex
	closed bool
}

func newProcesses(id string) *processes { return &processes{id: id} }

// process is a started command; stdout and stderr are to be read to their end, tty replaces all three streams if set.
type process struct {
	cmd            *exec.Cmd
	stdin          *os.File
	stdout, stderr *os.File
	tty            *os.File
}

var errEnding = errors.New("the control plane is ending")

// start runs argv in its own session. Without stdin the process reads nothing, as in a container.
func (p *processes) start(argv []string, dir string, env []string, stdin, tty bool) (*process, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return nil, errEnding
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(append([]string(nil), env...), runMark+p.id)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	proc := &process{cmd: cmd}

	var theirs []*os.File
	defer func() { closeAll(theirs) }()
	fail := func(err error) (*process, error) {
		proc.closeStreams()
		return nil, err
	}
	if tty {
		ours, their, err := pty.Open()
		if err != nil {
			return fail(fmt.Errorf("cannot open a terminal: %w", err))
		}
		theirs = append(theirs, their)
		proc.tty, proc.stdin, proc.stdout = ours, ours, ours
		cmd.Stdin, cmd.Stdout, cmd.Stderr = their, their, their
		cmd.SysProcAttr.Setctty = true
	} else {
		pipe := func(toChild bool) (ours, their *os.File, err error) {
			r, w, err := os.Pipe()
			if toChild {
				ours, their = w, r
			} else {
				ours, their = r, w
			}
			if err == nil {
				theirs = append(theirs, their)
			}
			return ours, their, err
		}
		var their *os.File
		var err error
		if stdin {
			if proc.stdin, their, err = pipe(true); err != nil {
				return fail(err)
			}
			cmd.Stdin = their
		}
		if proc.stdout, their, err = pipe(false); err != nil {
			return fail(err)
		}
		cmd.Stdout = their
		if proc.stderr, their, err = pipe(false); err != nil {
			return fail(err)
		}
		cmd.Stderr = their
	}
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	return proc, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func (p *process) closeStreams() {
	for _, f := range []*os.File{p.stdin, p.stdout, p.stderr} {
		if f != nil {
			_ = f.Close() // the terminal is in all three: closing it again only returns an error
		}
	}
}

// signal reaches the whole process group.
func (p *process) signal(sig syscall.Signal) { _ = syscall.Kill(-p.cmd.Process.Pid, sig) }

func (p *process) resize(width, height uint16) {
	if p.tty != nil {
		_ = pty.Setsize(p.tty, &pty.Winsize{Cols: width, Rows: height})
	}
}

// wait returns the exit code as a shell counts it: 128+N for an end by signal N.
func (p *process) wait() int {
	_ = p.cmd.Wait()
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return 255
	case status.Signaled():
		return 128 + int(status.Signal())
	default:
		return status.ExitStatus()
	}
}

// drain copies until the other side ends. A terminal answers EIO where a pipe answers end of file, and a reader that went
// away must stop the process with SIGPIPE, so our end is closed.
func drain(to io.Writer, from *os.File) {
	_, _ = io.Copy(to, from)
	_ = from.Close()
}

// notFound tells a command that is not there from a start that failed otherwise.
func notFound(err error) bool {
	return errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist)
}

// killPod ends whatever still runs of a pod.
func (p *processes) killPod(uid string) { killMarked(podMark + uid) }

// killAll ends everything that was ever started here and lets nothing start any more.
func (p *processes) killAll() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	killMarked(runMark + p.id)
}

// killMarked kills until none is left: a process may fork while it is being looked for. Bounded, as one that sits in an
// uninterruptible system call cannot be waited for.
func killMarked(mark string) {
	for round := 0; round < 40; round++ {
		found := false
		for _, pid := range marked(mark) {
			found = true
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if !found {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func marked(mark string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		// Others' processes and zombies are unreadable or empty: neither is ours to kill.
		environ, err := os.ReadFile("/proc/" + entry.Name() + "/environ")
		if err != nil {
			continue
		}
		for _, variable := range bytes.Split(environ, []byte{0}) {
			if string(variable) == mark {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// janitorScript waits for the end of its standard input, which the kernel closes whatever way this program ends, and then
// does what close() does. After an orderly end it finds nothing to do.
const janitorScript = `
trap '' INT TERM HUP
while read -r _; do :; done
for _ in 1 2 3 4 5; do
	pids=$(grep -alsz -e "^$1\$" /proc/[0-9]*/environ | cut -d/ -f3)
	[ -n "$pids" ] || break
	kill -9 $pids 2>/dev/null
	sleep 0.1
done
rm -rf -- "$2"
shift 2
rm -f -- "$@"
`

// startJanitor starts the one helper that outlives a kill -9 of this program, for a moment only.
func startJanitor(w *workspace) (io.Closer, error) {
	cmd := exec.Command("/bin/sh", "-c", janitorScript, "control-plane-janitor",
		runMark+w.id, w.data, w.adminKubeconfig(), w.agentkKubeconfig(), w.lock.Name())
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	// Its own session, so that a Ctrl-C at the terminal does not end it before its work is there.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	r, wr, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, r.Close(), wr.Close())
	}
	_ = r.Close()
	return &janitor{cmd: cmd, pipe: wr}, nil
}

type janitor struct {
	cmd  *exec.Cmd
	pipe *os.File
}

// Close lets the janitor end and waits for it, so that a test which counts processes afterwards finds none.
func (j *janitor) Close() error {
	return errors.Join(j.pipe.Close(), j.cmd.Wait())
}

// searchPath is where commands of containers are looked for: this machine's, as there is no image.
func searchPath() string {
	if path := os.Getenv("PATH"); strings.TrimSpace(path) != "" {
		return path
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}
