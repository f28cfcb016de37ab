// tests/control-plane/container.go: one container of the pretended node: a local process, its log in the format of real
// container runtimes (so that kubelet's own reader serves it), and the streams attached to it.

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// attachLinger is how long an attach goes on after its stdin has ended, so that the answer to the last input is seen.
const attachLinger = 500 * time.Millisecond

// container is one container and its present process; a restart makes a new process in the same container.
type container struct {
	spec corev1.Container
	pod  *pod
	dir  string // logs: one file per start, as kubelet names them

	mu       sync.Mutex
	restarts int
	starts   int
	state    corev1.ContainerState
	last     corev1.ContainerState
	process  *process      // nil when none runs
	stdin    *os.File      // of process; nil once closed
	exited   chan struct{} // closed when process has ended and its output is in the log
	attached map[*attachment]struct{}
}

// attachment is one client's pair of output streams; a nil one is not wanted.
type attachment struct {
	out, err io.Writer
	failed   chan struct{}
	once     sync.Once
}

func (a *attachment) write(stderr bool, data []byte) {
	w := a.out
	if stderr {
		w = a.err
	}
	if w == nil {
		return
	}
	if _, err := w.Write(data); err != nil {
		a.once.Do(func() { close(a.failed) })
	}
}

func newContainer(p *pod, spec corev1.Container) *container {
	return &container{
		spec: spec, pod: p, dir: filepath.Join(p.dir, "logs", spec.Name),
		state:    corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}},
		attached: map[*attachment]struct{}{},
	}
}

// argv is the container's command. There is no image and so no entrypoint: arguments alone are the command (as 'kubectl
// run NAME --image X -- COMMAND' gives them), and a container with neither idles as cat, which also answers an attach.
func (c *container) argv(env []string) []string {
	values := map[string]string{}
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		values[name] = value
	}
	mapping := expansion.MappingFuncFor(values)
	var argv []string
	for _, word := range append(append([]string(nil), c.spec.Command...), c.spec.Args...) {
		argv = append(argv, expansion.Expand(word, mapping))
	}
	return argv
}

// environ is a container's environment: nothing of this program's own, but for the search path.
func (c *container) environ() []string {
	p := c.pod
	env := []string{
		"PATH=" + searchPath(), "HOME=" + p.home, "PWD=" + p.home, "TMPDIR=" + filepath.Join(p.dir, "tmp"), "LANG=C.UTF-8",
		"HOSTNAME=" + p.name,
		"KUBERNETES_SERVICE_HOST=127.0.0.1",
		"KUBERNETES_SERVICE_PORT=" + strconv.Itoa(p.node.apiServerPort),
		"KUBERNETES_SERVICE_PORT_HTTPS=" + strconv.Itoa(p.node.apiServerPort),
		podMark + string(p.uid),
	}
	values := map[string]string{}
	mapping := expansion.MappingFuncFor(values)
	for _, variable := range c.spec.Env {
		value := expansion.Expand(variable.Value, mapping)
		if from := variable.ValueFrom; from != nil {
			if from.FieldRef == nil {
				continue // ConfigMaps, Secrets and resources are not looked up: README.md says so
			}
			value = p.field(from.FieldRef.FieldPath)
		}
		values[variable.Name] = value
		env = append(env, variable.Name+"="+value)
	}
	return env
}

// start runs the container's command once and returns when it runs; the end is told by c.exited, also that of a start that
// failed.
func (c *container) start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.exited = make(chan struct{})
	now := metav1.Now()
	fail := func(err error) error {
		c.state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: 127, Reason: "StartError", Message: err.Error(), StartedAt: now, FinishedAt: now,
		}}
		close(c.exited)
		return err
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fail(err)
	}
	log, err := openLog(filepath.Join(c.dir, strconv.Itoa(c.starts)+".log"))
	if err != nil {
		return fail(err)
	}
	c.starts++
	env := c.environ()
	argv, stdin := c.argv(env), c.spec.Stdin
	if len(argv) == 0 {
		argv, stdin = []string{"cat"}, true
	}
	proc, err := c.pod.node.procs.start(argv, c.pod.home, env, stdin, c.spec.TTY)
	if err != nil {
		_ = log.Close()
		return fail(err)
	}
	c.process, c.stdin = proc, proc.stdin
	c.state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}
	go c.follow(proc, log, c.exited, now)
	return nil
}

// follow keeps the log until the process has ended.
func (c *container) follow(proc *process, log *logFile, exited chan struct{}, startedAt metav1.Time) {
	var outputs sync.WaitGroup
	outputs.Go(func() { c.read(proc.stdout, log, false) })
	if proc.stderr != nil {
		outputs.Go(func() { c.read(proc.stderr, log, true) })
	}
	code := proc.wait()
	// The end of a container's first process is the end of all of them; what stays could keep the output open for ever.
	proc.signal(syscall.SIGKILL)
	read := make(chan struct{})
	go func() { outputs.Wait(); close(read) }()
	select {
	case <-read:
	case <-time.After(2 * time.Second):
	}

	c.mu.Lock()
	reason := "Completed"
	if code != 0 {
		reason = "Error"
	}
	c.state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: int32(code), Reason: reason, StartedAt: startedAt, FinishedAt: metav1.Now(), ContainerID: c.id(),
	}}
	c.process, c.stdin = nil, nil
	c.mu.Unlock()
	proc.closeStreams()
	close(exited)
	// Only after the state says 'terminated': closing touches the file, which wakes the followers to look at the state.
	_ = log.Close()
}

func (c *container) read(from *os.File, log *logFile, stderr bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			log.write(stderr, buf[:n])
			c.mu.Lock()
			attached := make([]*attachment, 0, len(c.attached))
			for a := range c.attached {
				attached = append(attached, a)
			}
			c.mu.Unlock()
			for _, a := range attached {
				a.write(stderr, buf[:n])
			}
		}
		if err != nil {
			log.flush(stderr)
			return
		}
	}
}

// stop ends the process: politely first, then not.
func (c *container) stop(grace time.Duration) {
	c.mu.Lock()
	proc, exited := c.process, c.exited
	c.mu.Unlock()
	if proc == nil {
		return
	}
	proc.signal(syscall.SIGTERM)
	select {
	case <-exited:
		return
	case <-time.After(grace):
	}
	proc.signal(syscall.SIGKILL)
	<-exited
}

// attach joins the present process' streams until it ends, the client goes, or its stdin has ended.
func (c *container) attach(ctx context.Context, in io.Reader, out, errOut io.Writer, resize func(*process)) error {
	c.mu.Lock()
	proc, stdin, exited := c.process, c.stdin, c.exited
	if proc == nil {
		c.mu.Unlock()
		return fmt.Errorf("container %s is not running", c.spec.Name)
	}
	a := &attachment{out: out, err: errOut, failed: make(chan struct{})}
	c.attached[a] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.attached, a)
		c.mu.Unlock()
	}()
	go resize(proc)

	stdinEnded := make(chan struct{})
	if in != nil {
		go func() {
			if stdin != nil {
				_, _ = io.Copy(stdin, in)
			}
			// What the process does not take must still be taken off the connection, whose other streams it would block.
			_, _ = io.Copy(io.Discard, in)
			close(stdinEnded)
		}()
	}
	select {
	case <-exited:
		return nil
	case <-a.failed:
		return nil
	case <-ctx.Done():
		return nil
	case <-stdinEnded:
	}
	wait := time.After(attachLinger)
	if c.spec.StdinOnce && !c.spec.TTY {
		c.mu.Lock()
		if c.process == proc && c.stdin != nil {
			_ = c.stdin.Close()
			c.stdin = nil
		}
		c.mu.Unlock()
		wait = nil // the process sees the end of its input and decides itself how long it goes on
	}
	select {
	case <-exited:
	case <-a.failed:
	case <-ctx.Done():
	case <-wait:
	}
	return nil
}

func (c *container) id() string {
	return fmt.Sprintf("postern://%s-%s-%d", c.pod.uid, c.spec.Name, c.starts)
}

// logPath is the present log, or the one before it.
func (c *container) logPath(previous bool) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.starts - 1
	if previous {
		n--
	}
	return filepath.Join(c.dir, strconv.Itoa(n)+".log"), n >= 0
}

// running tells whether the start that wrote this log is still going on.
func (c *container) running(logPath string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.process != nil && logPath == filepath.Join(c.dir, strconv.Itoa(c.starts-1)+".log")
}

func (c *container) status() corev1.ContainerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	running := c.state.Running != nil
	status := corev1.ContainerStatus{
		Name: c.spec.Name, Image: c.spec.Image, ImageID: "postern://no-image", State: c.state, LastTerminationState: c.last,
		Ready: running, Started: &running, RestartCount: int32(c.restarts),
	}
	if c.starts > 0 {
		status.ContainerID = c.id()
	}
	return status
}

// logFile writes the format of the container runtime interface: 'TIME stdout|stderr F|P TEXT', where P is a part of a line.
type logFile struct {
	mu      sync.Mutex
	file    *os.File
	partial [2][]byte
}

// partLimit is where runtimes cut a long line into parts.
const partLimit = 16 << 10

func openLog(path string) (*logFile, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &logFile{file: file}, nil
}

func stream(stderr bool) (int, string) {
	if stderr {
		return 1, "stderr"
	}
	return 0, "stdout"
}

func (l *logFile) write(stderr bool, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, name := stream(stderr)
	now := time.Now().Format(time.RFC3339Nano)
	var out bytes.Buffer
	line := func(tag string, text []byte) {
		fmt.Fprintf(&out, "%s %s %s ", now, name, tag)
		out.Write(text)
		out.WriteByte('\n')
	}
	rest := append(l.partial[i], data...)
	for {
		end := bytes.IndexByte(rest, '\n')
		switch {
		case end >= 0 && end <= partLimit:
			line("F", rest[:end])
			rest = rest[end+1:]
		case len(rest) > partLimit:
			line("P", rest[:partLimit])
			rest = rest[partLimit:]
		default:
			l.partial[i] = append([]byte(nil), rest...)
			_, _ = l.file.Write(out.Bytes())
			return
		}
	}
}

// flush writes what came without a line end before the stream ended.
func (l *logFile) flush(stderr bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, name := stream(stderr)
	if len(l.partial[i]) > 0 {
		fmt.Fprintf(l.file, "%s %s P %s\n", time.Now().Format(time.RFC3339Nano), name, l.partial[i])
		l.partial[i] = nil
	}
}

// Close touches the file's mode, which is an event that wakes whoever follows it.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.file.Chmod(0o400)
	return l.file.Close()
}
