// tests/control-plane/main.go: the command line and the life of the control plane: start in order, print one line, end
// promptly and leave nothing behind.

// control-plane runs a real Kubernetes control plane in one process for Postern's tests, with one pretended node.
// See README.md beside this file for what is real and what is pretended.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
)

// startTimeout is generous because CI has two cores and may be compiling at the same time.
const startTimeout = 120 * time.Second

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "control-plane: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	var (
		dir           = flag.String("dir", "", "directory for the kubeconfigs and, while it runs, for all data (required; created if missing)")
		printReady    = flag.Bool("print-ready", true, "print the one 'ready ...' line to stdout when everything is up")
		exitWithStdin = flag.Bool("exit-with-stdin", false, "end when standard input is closed, so that a parent that dies takes this along")
		verbose       = flag.Int("v", -1, "log to stderr: 0 for the usual, up to 10 for everything; without it only a failed start shows its last lines")
	)
	flag.Parse()
	if *dir == "" || flag.NArg() != 0 {
		return errors.New("usage: control-plane --dir DIR [--print-ready] [--exit-with-stdin] [-v LEVEL]; --dir is required and there are no other arguments")
	}
	began := time.Now()

	// Nothing but the ready line may reach stdout, whatever a library prints.
	stdout := os.Stdout
	os.Stdout = os.Stderr

	// More garbage is cheaper than more collections while starting; run() tightens it again when ready.
	debug.SetGCPercent(300)

	tail := setUpLogging(*verbose)

	ws, err := openWorkspace(*dir)
	if err != nil {
		return err
	}
	// Once. Signals, a closed stdin and failed starts can all get here.
	var once sync.Once
	cleanUp := func() { once.Do(ws.close) }
	defer cleanUp()

	// SIGHUP too: a test runner's terminal going away is an end like any other.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	ended := make(chan struct{})
	go func() {
		<-signals
		close(ended)
	}()
	if *exitWithStdin {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			select {
			case signals <- syscall.SIGTERM:
			default:
			}
		}()
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	started := make(chan error, 1)
	var cp controlPlane
	go func() {
		defer func() {
			if p := recover(); p != nil {
				started <- fmt.Errorf("the start panicked: %v\n%s", p, debug.Stack())
			}
		}()
		started <- cp.start(ctx, ws)
	}()
	select {
	case <-ended:
		return nil
	case err := <-started:
		if err != nil {
			return fmt.Errorf("the control plane did not start: %w\nIts last log lines (run it with -v 2 for more):\n%s", err, tail.String())
		}
	case <-time.After(startTimeout):
		return fmt.Errorf("the control plane was not ready after %v; see whether the machine is short of memory or CPU. Its last log lines (run it with -v 2 for more):\n%s", startTimeout, tail.String())
	}
	klog.InfoS("Ready", "after", time.Since(began).Round(time.Millisecond))
	if *printReady {
		fmt.Fprintf(stdout, "ready kubeconfig=%s agentk=%s server=%s\n", ws.adminKubeconfig(), ws.agentkKubeconfig(), cp.server)
	}
	debug.SetGCPercent(60)
	debug.FreeOSMemory()

	select {
	case <-ended:
		// No graceful shutdown of the API server or etcd: their data is deleted anyway, and tests wait for this.
		return nil
	case err := <-cp.failed:
		return fmt.Errorf("the control plane ended by itself: %w\nIts last log lines (run it with -v 2 for more):\n%s", err, tail.String())
	}
}

// setUpLogging sends every log line to stderr when asked, and otherwise keeps the last ones for a failure's message.
func setUpLogging(level int) *tailBuffer {
	tail := &tailBuffer{}
	var out io.Writer = tail
	if level >= 0 {
		out = io.MultiWriter(tail, os.Stderr)
	} else {
		level = 0
	}
	klog.SetLogger(textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(out), textlogger.Verbosity(level))))
	log.SetOutput(out)
	// The API server's own clients warn themselves about deprecated APIs; nobody here reads that.
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	return tail
}

// tailBuffer keeps about the last 8 KiB written to it.
type tailBuffer struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > 16<<10 {
		t.buf = append([]byte(nil), t.buf[len(t.buf)-(8<<10):]...)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.buf
	if len(b) > 8<<10 {
		b = b[len(b)-(8<<10):]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return string(b)
}

// workspace is everything on disk, and the processes of pods, which carry its id in their environment.
type workspace struct {
	dir     string // as the operator named it, made absolute
	created bool   // whether dir was made here, so that it goes away again
	data    string // dir/data-<id>: etcd, keys, pods
	id      string
	lock    *os.File
	janitor io.Closer
	procs   *processes
}

func (w *workspace) adminKubeconfig() string  { return filepath.Join(w.dir, "admin.kubeconfig") }
func (w *workspace) agentkKubeconfig() string { return filepath.Join(w.dir, "agentk.kubeconfig") }

func openWorkspace(dir string) (*workspace, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot make --dir %s absolute: %w", dir, err)
	}
	w := &workspace{dir: dir}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		w.created = true
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot create --dir: %w; name a directory that can be written", err)
	}
	w.lock, err = os.OpenFile(filepath.Join(dir, ".control-plane.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot write in --dir: %w; name a directory that can be written", err)
	}
	if err := syscall.Flock(int(w.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("another control-plane runs in %s; end it or name another --dir", dir)
	}
	random := make([]byte, 8)
	_, _ = rand.Read(random)
	w.id = hex.EncodeToString(random)
	w.data = filepath.Join(dir, "data-"+w.id)
	if err := os.Mkdir(w.data, 0o700); err != nil {
		return nil, fmt.Errorf("cannot create the data directory: %w", err)
	}
	w.procs = newProcesses(w.id)
	w.janitor, err = startJanitor(w)
	if err != nil {
		_ = os.RemoveAll(w.data)
		return nil, fmt.Errorf("cannot start the janitor, which needs /bin/sh: %w", err)
	}
	return w, nil
}

// close ends the pods' processes and removes what was written. The kubeconfigs go too: they lead nowhere now.
func (w *workspace) close() {
	w.procs.killAll()
	_ = os.Remove(w.adminKubeconfig())
	_ = os.Remove(w.agentkKubeconfig())
	// etcd and the API server still run and may write into the directory while it is being removed.
	for i := 0; i < 10; i++ {
		if err := os.RemoveAll(w.data); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	_ = os.Remove(w.lock.Name())
	if w.created {
		_ = os.Remove(w.dir)
	}
	_ = w.janitor.Close()
}

// writeFileAtomically lets a test that polls for the file never read half of it.
func writeFileAtomically(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
