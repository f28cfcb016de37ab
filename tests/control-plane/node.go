// tests/control-plane/node.go: the pretended node: registers itself, takes every pod (it is the scheduler, too), keeps the
// pods' status true, and finishes their deletion.

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/component-base/version"
	"k8s.io/klog/v2"
)

const (
	nodeName = "postern-node"
	nodeIP   = "127.0.0.1"
	// Real clusters give processes 30 s to end; a test that waits for a deletion should not have to.
	longestGrace = 3 * time.Second
	// Restarts come 1, 2, 4, 8, 10, 10... seconds after an end (kubelet: 10 s up to 5 min).
	firstBackoff, longestBackoff = time.Second, 10 * time.Second
)

type node struct {
	procs         *processes
	dir           string
	client        kubernetes.Interface
	apiServerPort int
	kubeletPort   int
	lister        corelisters.PodLister
	queue         workqueue.TypedRateLimitingInterface[types.NamespacedName]

	mu   sync.Mutex
	pods map[types.NamespacedName]*pod
}

// pod is a pod on this node, from its first start to the end of its processes.
type pod struct {
	node            *node
	namespace, name string
	uid             types.UID
	spec            *corev1.Pod // as it was when it came
	dir, home       string
	started         metav1.Time
	containers      map[string]*container
	cancel          context.CancelFunc
	ending          bool          // its deletion is under way; guarded by node.mu
	done            chan struct{} // closed when nothing of it runs any more
	statusMu        sync.Mutex    // statuses reach the API server in the order they are made
}

func newNode(ws *workspace, ca *authority, client kubernetes.Interface, apiServerPort int) (*node, error) {
	n := &node{
		procs: ws.procs, dir: filepath.Join(ws.data, "pods"), client: client, apiServerPort: apiServerPort,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](20*time.Millisecond, 5*time.Second)),
		pods:  map[types.NamespacedName]*pod{},
	}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return nil, err
	}
	serving, err := ca.server("kubelet", []string{nodeName}, []net.IP{net.ParseIP(nodeIP)})
	if err != nil {
		return nil, err
	}
	n.kubeletPort, err = serveKubelet(n, serving, ca)
	return n, err
}

// register makes the Node object; with no node lifecycle controller around, its status stays as it is written here.
func (n *node) register(ctx context.Context) error {
	object := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{
			corev1.LabelHostname: nodeName, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
		}},
	}
	object, err := n.client.CoreV1().Nodes().Create(ctx, object, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	resources := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("256Gi"), corev1.ResourcePods: resource.MustParse("1000"),
	}
	now := metav1.Now()
	object.Status = corev1.NodeStatus{
		Capacity: resources, Allocatable: resources,
		Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Pretended", Message: "a node of Postern's test control plane",
			LastHeartbeatTime: now, LastTransitionTime: now,
		}},
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: nodeIP}, {Type: corev1.NodeHostName, Address: nodeName},
		},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(n.kubeletPort)}},
		NodeInfo: corev1.NodeSystemInfo{
			KubeletVersion: version.Get().GitVersion, ContainerRuntimeVersion: "postern://1", OperatingSystem: "linux", Architecture: "amd64",
			OSImage: "no image: local processes",
		},
	}
	_, err = n.client.CoreV1().Nodes().UpdateStatus(ctx, object, metav1.UpdateOptions{})
	return err
}

func (n *node) run(ctx context.Context) {
	factory := informers.NewSharedInformerFactory(n.client, 0)
	informer := factory.Core().V1().Pods()
	n.lister = informer.Lister()
	enqueue := func(object any) {
		if key, err := cache.DeletionHandlingObjectToName(object); err == nil {
			n.queue.Add(types.NamespacedName(key.AsNamespacedName()))
		}
	}
	_, _ = informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: enqueue, UpdateFunc: func(_, object any) { enqueue(object) }, DeleteFunc: enqueue,
	})
	factory.Start(ctx.Done())
	for range 4 {
		go func() {
			factory.WaitForCacheSync(ctx.Done())
			for {
				key, quit := n.queue.Get()
				if quit {
					return
				}
				if err := n.sync(ctx, key); err != nil {
					klog.InfoS("A pod is tried again", "pod", key, "because", err)
					n.queue.AddRateLimited(key)
				} else {
					n.queue.Forget(key)
				}
				n.queue.Done(key)
			}
		}()
	}
}

// sync brings one pod one step further; the next change of the pod brings it back here.
func (n *node) sync(ctx context.Context, key types.NamespacedName) error {
	object, err := n.lister.Pods(key.Namespace).Get(key.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	n.mu.Lock()
	p := n.pods[key]
	n.mu.Unlock()

	// Gone from the API (deleted with force), or another pod of the same name by now.
	if p != nil && (err != nil || object.UID != p.uid) {
		n.remove(key, p, 0)
		p = nil
	}
	switch {
	case err != nil:
		return nil
	case object.Spec.NodeName == "" && object.DeletionTimestamp == nil && len(object.Spec.SchedulingGates) == 0:
		return ignoreGone(n.client.CoreV1().Pods(key.Namespace).Bind(ctx, &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Name: key.Name, Namespace: key.Namespace, UID: object.UID},
			Target:     corev1.ObjectReference{Kind: "Node", Name: nodeName},
		}, metav1.CreateOptions{}))
	case object.Spec.NodeName != nodeName:
		return nil
	case object.DeletionTimestamp != nil:
		if p != nil {
			n.mu.Lock()
			already := p.ending
			p.ending = true
			n.mu.Unlock()
			if already {
				return nil
			}
			grace := longestGrace
			if seconds := object.DeletionGracePeriodSeconds; seconds != nil {
				grace = min(grace, time.Duration(*seconds)*time.Second)
			}
			// Not in a worker's time: other pods must not wait for this one's end.
			go func() {
				n.remove(key, p, grace)
				n.queue.Add(key)
			}()
			return nil
		}
		zero := int64(0)
		return ignoreGone(n.client.CoreV1().Pods(key.Namespace).Delete(ctx, key.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &object.UID},
		}))
	case p == nil && object.Status.Phase != corev1.PodSucceeded && object.Status.Phase != corev1.PodFailed:
		return n.startPod(ctx, key, object)
	}
	return nil
}

// ignoreGone: a pod that went away or was replaced meanwhile needs nothing any more.
func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

func (n *node) startPod(ctx context.Context, key types.NamespacedName, object *corev1.Pod) error {
	p := &pod{
		node: n, namespace: key.Namespace, name: key.Name, uid: object.UID, spec: object, dir: filepath.Join(n.dir, string(object.UID)),
		started: metav1.Now(), containers: map[string]*container{}, done: make(chan struct{}),
	}
	p.home = filepath.Join(p.dir, "home")
	for _, dir := range []string{p.home, filepath.Join(p.dir, "tmp")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	for _, spec := range append(append([]corev1.Container(nil), object.Spec.InitContainers...), object.Spec.Containers...) {
		p.containers[spec.Name] = newContainer(p, spec)
	}
	ctx, p.cancel = context.WithCancel(ctx)
	n.mu.Lock()
	n.pods[key] = p
	n.mu.Unlock()
	go p.run(ctx)
	return nil
}

// remove ends the pod's processes, all of them, and forgets it. Calling it again waits for the first call's end.
func (n *node) remove(key types.NamespacedName, p *pod, grace time.Duration) {
	p.cancel()
	var all sync.WaitGroup
	for _, c := range p.containers {
		all.Go(func() { c.stop(grace) })
	}
	all.Wait()
	<-p.done
	n.procs.killPod(string(p.uid)) // execs, and what detached itself
	n.mu.Lock()
	if n.pods[key] == p {
		delete(n.pods, key)
	}
	n.mu.Unlock()
	_ = os.RemoveAll(p.dir)
}

func (n *node) pod(namespace, name string) *pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pods[types.NamespacedName{Namespace: namespace, Name: name}]
}

// run is the pod's life: init containers one after the other, then the containers side by side, each with its restarts.
func (p *pod) run(ctx context.Context) {
	defer close(p.done)
	var sidecars sync.WaitGroup
	defer sidecars.Wait()
	initialized := true
	for _, spec := range p.spec.Spec.InitContainers {
		c := p.containers[spec.Name]
		if spec.RestartPolicy != nil && *spec.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			// A sidecar: it goes on beside the others, and ends with them.
			sidecarCtx, end := context.WithCancel(ctx)
			defer c.stop(longestGrace)
			defer end()
			sidecars.Go(func() { p.keep(sidecarCtx, c, corev1.RestartPolicyAlways) })
			continue
		}
		policy := p.spec.Spec.RestartPolicy
		if policy == corev1.RestartPolicyAlways {
			policy = corev1.RestartPolicyOnFailure
		}
		if p.keep(ctx, c, policy) != 0 {
			initialized = false
			break
		}
	}
	if !initialized || ctx.Err() != nil {
		p.report(ctx)
		return
	}
	var all sync.WaitGroup
	for _, spec := range p.spec.Spec.Containers {
		c := p.containers[spec.Name]
		all.Go(func() { p.keep(ctx, c, p.spec.Spec.RestartPolicy) })
	}
	all.Wait()
}

// keep runs a container until its policy wants it no more, and returns its last exit code.
func (p *pod) keep(ctx context.Context, c *container, policy corev1.RestartPolicy) int32 {
	backoff := firstBackoff
	for {
		began := time.Now()
		if ctx.Err() != nil {
			return 1
		}
		if err := c.start(); err != nil {
			klog.InfoS("A container did not start", "pod", p.namespace+"/"+p.name, "container", c.spec.Name, "because", err)
		} else if ctx.Err() != nil {
			// The pod was ended between the check and the start, so nobody else stops this process.
			c.stop(0)
		}
		p.report(ctx)
		<-c.exited
		if ctx.Err() != nil {
			return 1
		}
		c.mu.Lock()
		code := int32(1)
		if c.state.Terminated != nil {
			code = c.state.Terminated.ExitCode
		}
		again := policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && code != 0
		if again {
			if time.Since(began) > 10*longestBackoff {
				backoff = firstBackoff
			}
			c.last = c.state
			c.state = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{
				Reason: "CrashLoopBackOff", Message: fmt.Sprintf("restarting in %v", backoff),
			}}
		}
		c.mu.Unlock()
		p.report(ctx)
		if !again {
			return code
		}
		select {
		case <-ctx.Done():
			return 1
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, longestBackoff)
		c.mu.Lock()
		c.restarts++
		c.mu.Unlock()
	}
}

// status is made anew from what the containers are doing; probes are not run, a container that runs is ready.
func (p *pod) status() corev1.PodStatus {
	status := corev1.PodStatus{
		HostIP: nodeIP, HostIPs: []corev1.HostIP{{IP: nodeIP}}, PodIP: nodeIP, PodIPs: []corev1.PodIP{{IP: nodeIP}},
		StartTime: &p.started, QOSClass: corev1.PodQOSBestEffort,
	}
	initialized, initFailed := true, false
	for _, spec := range p.spec.Spec.InitContainers {
		s := p.containers[spec.Name].status()
		if ended := s.State.Terminated; ended != nil {
			s.Ready = ended.ExitCode == 0
			initFailed = initFailed || ended.ExitCode != 0
		}
		sidecar := spec.RestartPolicy != nil && *spec.RestartPolicy == corev1.ContainerRestartPolicyAlways
		initialized = initialized && (sidecar || s.State.Terminated != nil && s.Ready)
		status.InitContainerStatuses = append(status.InitContainerStatuses, s)
	}
	waiting, running, failed := 0, 0, 0
	for _, spec := range p.spec.Spec.Containers {
		s := p.containers[spec.Name].status()
		switch {
		case s.State.Running != nil:
			running++
		case s.State.Waiting != nil:
			waiting++
			if s.LastTerminationState.Terminated != nil {
				running++ // between two starts: the pod as a whole goes on
			}
		case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
			failed++
		}
		status.ContainerStatuses = append(status.ContainerStatuses, s)
	}
	ready := initialized && waiting == 0 && running == len(p.spec.Spec.Containers)
	switch {
	case initFailed:
		status.Phase = corev1.PodFailed
	case !initialized || waiting > 0 && running == 0:
		status.Phase = corev1.PodPending
	case running > 0:
		status.Phase = corev1.PodRunning
	case failed > 0:
		status.Phase = corev1.PodFailed
	default:
		status.Phase = corev1.PodSucceeded
	}
	condition := func(kind corev1.PodConditionType, yes bool) {
		value := corev1.ConditionFalse
		if yes {
			value = corev1.ConditionTrue
		}
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: kind, Status: value, LastTransitionTime: metav1.Now()})
	}
	condition(corev1.PodScheduled, true)
	condition(corev1.PodInitialized, initialized)
	condition(corev1.ContainersReady, ready)
	condition(corev1.PodReady, ready)
	return status
}

// report writes the status as it is now. Retried for a while, as everything that waits for the pod waits for this.
func (p *pod) report(ctx context.Context) {
	p.statusMu.Lock()
	defer p.statusMu.Unlock()
	for try := 0; try < 20 && ctx.Err() == nil; try++ {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.uid}, "status": p.status()})
		if err != nil {
			klog.ErrorS(err, "A pod's status cannot be written as JSON", "pod", p.namespace+"/"+p.name)
			return
		}
		_, err = p.node.client.CoreV1().Pods(p.namespace).Patch(ctx, p.name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
		if ignoreGone(err) == nil {
			return
		}
		klog.InfoS("A pod's status is written again", "pod", p.namespace+"/"+p.name, "because", err)
		time.Sleep(100 * time.Millisecond)
	}
}

// field answers what the downward API would, for the paths that commands are usually given.
func (p *pod) field(path string) string {
	switch path {
	case "metadata.name":
		return p.name
	case "metadata.namespace":
		return p.namespace
	case "metadata.uid":
		return string(p.uid)
	case "spec.nodeName":
		return nodeName
	case "spec.serviceAccountName":
		return p.spec.Spec.ServiceAccountName
	case "status.podIP", "status.hostIP", "status.podIPs", "status.hostIPs":
		return nodeIP
	}
	for prefix, values := range map[string]map[string]string{"metadata.labels['": p.spec.Labels, "metadata.annotations['": p.spec.Annotations} {
		if key, ok := strings.CutPrefix(path, prefix); ok {
			return values[strings.TrimSuffix(key, "']")]
		}
	}
	return ""
}
