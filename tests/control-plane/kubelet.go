// tests/control-plane/kubelet.go: the node's HTTPS server, as the API server calls a kubelet: exec, attach, port-forward and
// logs, on kubelet's own streaming and log-reading code; only what is behind the streams is ours.

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	remotecommandconsts "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/apiserver/pkg/util/flushwriter"
	"k8s.io/client-go/tools/remotecommand"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"
	"k8s.io/klog/v2"
	"k8s.io/kubelet/pkg/cri/streaming/portforward"
	streaming "k8s.io/kubelet/pkg/cri/streaming/remotecommand"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	utilexec "k8s.io/utils/exec"
)

const (
	// kubelet's own defaults.
	streamIdleTimeout     = 4 * time.Hour
	streamCreationTimeout = remotecommandconsts.DefaultStreamCreationTimeout
)

// serveKubelet listens on a free port and returns it.
func serveKubelet(n *node, serving *pair, ca *authority) (int, error) {
	certificate, err := tls.X509KeyPair(serving.certPEM, serving.keyPEM)
	if err != nil {
		return 0, err
	}
	clients := x509.NewCertPool()
	clients.AddCert(ca.cert)
	listener, err := net.Listen("tcp", net.JoinHostPort(nodeIP, "0"))
	if err != nil {
		return 0, err
	}
	k := &kubelet{node: n}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", k.logs)
	for _, method := range []string{"GET", "POST"} { // GET for WebSocket, POST for SPDY
		for _, uid := range []string{"", "/{uid}"} {
			mux.HandleFunc(method+" /exec/{namespace}/{pod}"+uid+"/{container}", k.exec)
			mux.HandleFunc(method+" /attach/{namespace}/{pod}"+uid+"/{container}", k.attach)
			mux.HandleFunc(method+" /portForward/{namespace}/{pod}"+uid, k.portForward)
		}
	}
	server := &http.Server{
		Handler: mux,
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate},
			ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert,
		},
		// An upgrade to SPDY needs HTTP/1.1.
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          log.New(log.Writer(), "", 0),
	}
	go func() {
		err := server.ServeTLS(listener, "", "")
		klog.ErrorS(err, "The node's server stopped")
	}()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

type kubelet struct{ node *node }

// find answers the request itself when there is no such pod or container.
func (k *kubelet) find(w http.ResponseWriter, r *http.Request) (*pod, *container) {
	namespace, name := r.PathValue("namespace"), r.PathValue("pod")
	p := k.node.pod(namespace, name)
	if p == nil || r.PathValue("uid") != "" && r.PathValue("uid") != string(p.uid) {
		http.Error(w, fmt.Sprintf("pod %q of namespace %q is not on this node (it may be starting or ending)", name, namespace), http.StatusNotFound)
		return nil, nil
	}
	if r.PathValue("container") == "" {
		return p, nil
	}
	c := p.containers[r.PathValue("container")]
	if c == nil {
		http.Error(w, fmt.Sprintf("container %q not found in pod %q", r.PathValue("container"), name), http.StatusNotFound)
		return nil, nil
	}
	return p, c
}

func (k *kubelet) exec(w http.ResponseWriter, r *http.Request) {
	p, c := k.find(w, r)
	if p == nil {
		return
	}
	options, err := streaming.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	command := r.URL.Query()["command"]
	if len(command) == 0 {
		http.Error(w, "exec needs a command", http.StatusBadRequest)
		return
	}
	streaming.ServeExec(w, r, streams{c}, p.name, p.uid, c.spec.Name, command, options,
		streamIdleTimeout, streamCreationTimeout, remotecommandconsts.SupportedStreamingProtocols)
}

func (k *kubelet) attach(w http.ResponseWriter, r *http.Request) {
	p, c := k.find(w, r)
	if p == nil {
		return
	}
	options, err := streaming.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	streaming.ServeAttach(w, r, streams{c}, p.name, p.uid, c.spec.Name, options,
		streamIdleTimeout, streamCreationTimeout, remotecommandconsts.SupportedStreamingProtocols)
}

func (k *kubelet) portForward(w http.ResponseWriter, r *http.Request) {
	p, _ := k.find(w, r)
	if p == nil {
		return
	}
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, forwarder{}, p.name, p.uid, options, streamIdleTimeout, streamCreationTimeout, portforward.SupportedProtocols)
}

func (k *kubelet) logs(w http.ResponseWriter, r *http.Request) {
	p, c := k.find(w, r)
	if p == nil {
		return
	}
	query := r.URL.Query()
	options := &corev1.PodLogOptions{}
	if err := legacyscheme.ParameterCodec.DecodeParameters(query, corev1.SchemeGroupVersion, options); err != nil {
		http.Error(w, "unable to decode the query: "+err.Error(), http.StatusBadRequest)
		return
	}
	path, ok := c.logPath(options.Previous)
	if !ok {
		message := fmt.Sprintf("container %q in pod %q is waiting to start: ContainerCreating", c.spec.Name, p.name)
		if options.Previous {
			message = fmt.Sprintf("previous terminated container %q in pod %q not found", c.spec.Name, p.name)
		}
		http.Error(w, message, http.StatusBadRequest)
		return
	}
	flushing := flushwriter.Wrap(w)
	var stdout, stderr io.Writer = flushing, flushing
	if options.Stream != nil {
		switch *options.Stream {
		case corev1.LogStreamStdout:
			stderr = nil
		case corev1.LogStreamStderr:
			stdout = nil
		}
	}
	// As kubelet does: the headers go out now, so that a follower of a silent container has its answer.
	w.Header().Set("Transfer-Encoding", "chunked")
	if options.Follow {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
	}
	logger := klog.FromContext(r.Context())
	err := logs.ReadLogs(r.Context(), &logger, path, path, logs.NewLogOptions(options, time.Now()), logRuntime{c: c}, stdout, stderr)
	if err != nil && r.Context().Err() == nil {
		// Too late for a status: the reader sees a text that ends here, and this log says why.
		klog.InfoS("Reading a log ended", "pod", p.namespace+"/"+p.name, "because", err)
	}
}

// logRuntime answers the one question that the log reader asks a container runtime: is it still running?
type logRuntime struct {
	internalapi.RuntimeService
	c *container
}

func (l logRuntime) ContainerStatus(_ context.Context, id string, _ bool) (*runtimeapi.ContainerStatusResponse, error) {
	state := runtimeapi.ContainerState_CONTAINER_EXITED
	if l.c.running(id) {
		state = runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{Id: id, State: state}}, nil
}

// streams is what kubelet's streaming code calls for one container.
type streams struct{ c *container }

func (s streams) ExecInContainer(_ context.Context, _ string, _ types.UID, _ string, command []string, in io.Reader, out, errOut io.WriteCloser,
	tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	c := s.c
	c.mu.Lock()
	running := c.process != nil
	c.mu.Unlock()
	if !running {
		return fmt.Errorf("container %s is not running", c.spec.Name)
	}
	env := c.environ()
	if tty {
		env = append(env, "TERM=xterm")
	}
	proc, err := c.pod.node.procs.start(command, c.pod.home, env, in != nil, tty)
	if err != nil {
		if errors.Is(err, errEnding) {
			return err
		}
		// As a shell would say it: container runtimes use the same two codes.
		code := 126
		if notFound(err) {
			code = 127
		}
		if errOut == nil {
			errOut = out
		}
		if errOut != nil {
			fmt.Fprintf(errOut, "exec failed: %v\n", err)
		}
		return utilexec.CodeExitError{Err: err, Code: code}
	}
	go resizer(resize)(proc)
	if in != nil {
		go func() {
			_, _ = io.Copy(proc.stdin, in)
			if !tty {
				_ = proc.stdin.Close()
			}
			// What the process does not take must still be taken off the connection, whose other streams it would block.
			_, _ = io.Copy(io.Discard, in)
		}()
	}
	var outputs sync.WaitGroup
	outputs.Go(func() { drain(orDiscard(out), proc.stdout) })
	if proc.stderr != nil {
		outputs.Go(func() { drain(orDiscard(errOut), proc.stderr) })
	}
	// Without a time limit, as in a real cluster: a slow network must not cut the output short.
	code := proc.wait()
	outputs.Wait()
	proc.closeStreams()
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

func orDiscard(w io.WriteCloser) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// resizer makes the function that follows the client's window until the stream ends.
func resizer(resize <-chan remotecommand.TerminalSize) func(*process) {
	return func(proc *process) {
		if resize == nil {
			return
		}
		for size := range resize {
			proc.resize(size.Width, size.Height)
		}
	}
}

func (s streams) AttachContainer(ctx context.Context, _ string, _ types.UID, _ string, in io.Reader, out, errOut io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize) error {
	// An interface that holds a nil stream is not nil: keep them apart.
	var stdout, stderr io.Writer
	if out != nil {
		stdout = out
	}
	if errOut != nil {
		stderr = errOut
	}
	return s.c.attach(ctx, in, stdout, stderr, resizer(resize))
}

// forwarder connects a stream to a port of this machine, which all pods share.
type forwarder struct{}

func (forwarder) PortForward(ctx context.Context, name string, _ types.UID, port int32, stream io.ReadWriteCloser) error {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(nodeIP, strconv.Itoa(int(port))))
	if err != nil {
		return fmt.Errorf("nothing answers on port %d for pod %s: %w", port, name, err)
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, stream)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, conn)
	if err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "closed") {
		return err
	}
	// The pod's side has said all it has to; what the client still sends has no reader.
	return nil
}
