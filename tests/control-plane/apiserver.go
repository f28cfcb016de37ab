// tests/control-plane/apiserver.go: the real parts in start order: embedded etcd, kube-apiserver, then controllers, the
// pretended node and agentk's account.

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/utils/ptr"
)

const (
	agentkNamespace = "postern"
	agentkAccount   = "agentk"
	// Long enough for any test, short enough to be worthless soon: the keys die with the process anyway.
	agentkTokenLife = 7 * 24 * time.Hour
)

// controlPlane is what start has brought up.
type controlPlane struct {
	server string     // https://127.0.0.1:PORT
	failed chan error // a part that ended by itself after the start
}

func (cp *controlPlane) start(ctx context.Context, ws *workspace) error {
	cp.failed = make(chan error, 4)

	ca, err := newAuthority(filepath.Join(ws.data, "pki"))
	if err != nil {
		return fmt.Errorf("making certificates: %w", err)
	}
	admin, err := ca.client("postern-admin", "system:masters")
	if err != nil {
		return fmt.Errorf("making the admin's certificate: %w", err)
	}
	accountKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making the service accounts' key: %w", err)
	}

	etcdURL, err := startEtcd(filepath.Join(ws.data, "etcd"), cp.failed)
	if err != nil {
		return fmt.Errorf("starting etcd: %w", err)
	}

	// The port is taken before the server starts, so that no other process can get in between.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listening on 127.0.0.1: %w; is the loopback interface up (in a network namespace: 'ip link set lo up')?", err)
	}
	cp.server = "https://" + listener.Addr().String()
	serverFailed := make(chan error, 1)
	go func() {
		err := runAPIServer(ctx, listener, etcdURL, ca, accountKey)
		if err == nil {
			err = fmt.Errorf("kube-apiserver stopped")
		}
		serverFailed <- err
		cp.failed <- err
	}()

	config := &rest.Config{
		Host:            cp.server,
		TLSClientConfig: rest.TLSClientConfig{CAData: ca.certPEM, CertData: admin.certPEM, KeyData: admin.keyPEM},
		// Nobody else is on this server: the usual client-side throttling would only slow tests down.
		QPS: -1,
	}
	client, err := kubernetes.NewForConfig(protobuf(config))
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}

	node, err := newNode(ws, ca, client, listener.Addr().(*net.TCPAddr).Port)
	if err != nil {
		return fmt.Errorf("starting the pretended node: %w", err)
	}

	if err := waitFor(ctx, serverFailed, "the API server's /readyz", func() error {
		return client.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	}); err != nil {
		return err
	}
	if err := startControllers(ctx, config, ca.certPEM, accountKey); err != nil {
		return fmt.Errorf("starting the controllers: %w", err)
	}
	if err := node.register(ctx); err != nil {
		return fmt.Errorf("registering the node: %w", err)
	}
	node.run(ctx)

	for _, name := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		if err := waitFor(ctx, serverFailed, "namespace "+name, func() error {
			_, err := client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
			return err
		}); err != nil {
			return err
		}
	}
	token, err := makeAgentk(ctx, client)
	if err != nil {
		return fmt.Errorf("making agentk's account: %w", err)
	}
	// Pods of a namespace are refused until its default account exists; the first test should not have to wait for it.
	for _, namespace := range []string{"default", agentkNamespace} {
		if err := waitFor(ctx, serverFailed, "the default account of namespace "+namespace, func() error {
			_, err := client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
			return err
		}); err != nil {
			return err
		}
	}

	if err := writeKubeconfig(ws.adminKubeconfig(), cp.server, ca.certPEM, "postern-admin",
		&clientcmdapi.AuthInfo{ClientCertificateData: admin.certPEM, ClientKeyData: admin.keyPEM}); err != nil {
		return err
	}
	return writeKubeconfig(ws.agentkKubeconfig(), cp.server, ca.certPEM, agentkAccount, &clientcmdapi.AuthInfo{Token: token})
}

// waitFor tries until it works, and gives up at once when the server has ended (start's own time limit is in main.go).
func waitFor(ctx context.Context, failed <-chan error, what string, try func() error) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(context.Context) (bool, error) {
		select {
		case err := <-failed:
			return false, err
		default:
		}
		last = try()
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for %s: %w (last answer: %v)", what, err, last)
	}
	return nil
}

func protobuf(config *rest.Config) *rest.Config {
	c := rest.CopyConfig(config)
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return c
}

// startEtcd runs a one-member etcd in this process and returns the URL for clients.
func startEtcd(dir string, failed chan<- error) (string, error) {
	loopback := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg := embed.NewConfig()
	cfg.Name = "postern"
	cfg.Dir = dir
	cfg.ListenClientUrls = []url.URL{loopback}
	cfg.AdvertiseClientUrls = []url.URL{loopback}
	// A lone member talks to no peer, but etcd insists on these.
	cfg.ListenPeerUrls = []url.URL{loopback}
	cfg.AdvertisePeerUrls = []url.URL{loopback}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	// The data is thrown away at the end: syncing it to disk would only cost time.
	cfg.UnsafeNoFsync = true
	// A lone member elects itself once the election timeout is over: keep that short.
	cfg.TickMs, cfg.ElectionMs = 20, 100
	// The gateway would dial the advertised address, which is none.
	cfg.EnableGRPCGateway = false
	cfg.LogLevel = "fatal"
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return "", err
	}
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return "", err
	case <-time.After(30 * time.Second):
		return "", fmt.Errorf("etcd was not ready after 30 s")
	}
	go func() { failed <- fmt.Errorf("etcd: %w", <-e.Err()) }()
	return "http://" + e.Clients[0].Addr().String(), nil
}

// runAPIServer runs kube-apiserver's own code on the listener until ctx ends or it fails.
func runAPIServer(ctx context.Context, listener net.Listener, etcdURL string, ca *authority, accountKey *ecdsa.PrivateKey) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("kube-apiserver panicked: %v", p)
		}
	}()
	serving, err := ca.server("kube-apiserver",
		[]string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		[]net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, net.IPv4(10, 0, 0, 1)})
	if err != nil {
		return err
	}
	// The node's server lets nobody in but the API server, which shows this certificate.
	kubeletClient, err := ca.client("kube-apiserver-kubelet-client", "system:masters")
	if err != nil {
		return err
	}
	accountKeyPEM, err := encodeKey(accountKey)
	if err != nil {
		return err
	}
	accountKeyFile := filepath.Join(ca.dir, "service-account.key")
	if err := os.WriteFile(accountKeyFile, accountKeyPEM, 0o600); err != nil {
		return err
	}

	s := options.NewServerRunOptions()
	port := listener.Addr().(*net.TCPAddr).Port
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, f := range s.Flags().FlagSets {
		flags.AddFlagSet(f)
	}
	if err := flags.Parse([]string{
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", port),
		"--advertise-address=127.0.0.1",
		// The endpoints of the 'kubernetes' service may not be a loopback address, so nobody keeps them.
		"--endpoint-reconciler-type=none",
		"--etcd-servers=" + etcdURL,
		"--service-cluster-ip-range=10.0.0.0/16",
		"--tls-cert-file=" + serving.certFile,
		"--tls-private-key-file=" + serving.keyFile,
		"--client-ca-file=" + ca.certFile(),
		"--authorization-mode=RBAC",
		"--allow-privileged=true",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + accountKeyFile,
		"--service-account-signing-key-file=" + accountKeyFile,
		"--kubelet-certificate-authority=" + ca.certFile(),
		"--kubelet-client-certificate=" + kubeletClient.certFile,
		"--kubelet-client-key=" + kubeletClient.keyFile,
		"--kubelet-preferred-address-types=InternalIP",
		// Fair queuing protects a shared server from its clients; here it costs start-up time and memory only.
		"--enable-priority-and-fairness=false",
		"--profiling=false",
		"--disable-admission-plugins=" + strings.Join([]string{
			// What these guard has no part here: storage, nodes' taints, certificates to be signed, quotas' controller.
			"CertificateApproval", "CertificateSigning", "CertificateSubjectRestriction", "ClusterTrustBundleAttest",
			"DefaultIngressClass", "DefaultStorageClass", "PersistentVolumeClaimResize", "PodSecurity", "PodTopologyLabels",
			"ResourceQuota", "RuntimeClass", "StorageObjectInUseProtection", "TaintNodesByCondition",
		}, ","),
	}); err != nil {
		return fmt.Errorf("kube-apiserver refused its flags: %w", err)
	}
	s.SecureServing.Listener, s.SecureServing.BindPort = listener, port

	if err := s.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	completed, err := s.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) != 0 {
		return utilerrors.NewAggregate(errs)
	}
	return app.Run(ctx, completed)
}

// makeAgentk makes the account that an agentk under test uses, and returns a token of it.
func makeAgentk(ctx context.Context, client kubernetes.Interface) (string, error) {
	_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: agentkNamespace}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", err
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: agentkAccount, Namespace: agentkNamespace}}
	if _, err := client.CoreV1().ServiceAccounts(agentkNamespace).Create(ctx, account, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return "", err
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "postern-agentk"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: agentkAccount, Namespace: agentkNamespace}},
	}
	if _, err := client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return "", err
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(agentkTokenLife.Seconds()))}}
	answer, err := client.CoreV1().ServiceAccounts(agentkNamespace).CreateToken(ctx, agentkAccount, request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return answer.Status.Token, nil
}
