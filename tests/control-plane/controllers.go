// tests/control-plane/controllers.go: the controllers of kube-controller-manager that tests need, taken one by one: the
// whole manager would add volume and cloud code, build time and memory, and no behaviour that Postern meets.

package main

import (
	"context"
	"crypto/ecdsa"
	"time"

	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	"k8s.io/kubernetes/pkg/controller/deployment"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/job"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/replicaset"
	serviceaccountcontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"

	corev1 "k8s.io/api/core/v1"
)

// workers per controller: small, as the cluster is.
const workers = 2

func startControllers(ctx context.Context, config *rest.Config, rootCA []byte, accountKey *ecdsa.PrivateKey) error {
	logger := klog.FromContext(ctx)
	client, err := kubernetes.NewForConfig(protobuf(config))
	if err != nil {
		return err
	}
	metadataClient, err := metadata.NewForConfig(config)
	if err != nil {
		return err
	}
	shared := informers.NewSharedInformerFactory(client, 0)
	sharedMetadata := metadatainformer.NewSharedInformerFactory(metadataClient, 0)
	core, apps := shared.Core().V1(), shared.Apps().V1()

	// Every namespace gets its 'default' account, the CA's ConfigMap, and is emptied when it is deleted.
	accounts, err := serviceaccountcontroller.NewServiceAccountsController(logger, core.ServiceAccounts(), core.Namespaces(), client,
		serviceaccountcontroller.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return err
	}
	tokenGenerator, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, accountKey)
	if err != nil {
		return err
	}
	// Secrets of type kubernetes.io/service-account-token are still what many agents are installed with.
	tokens, err := serviceaccountcontroller.NewTokensController(logger, core.ServiceAccounts(), core.Secrets(), client,
		serviceaccountcontroller.TokensControllerOptions{TokenGenerator: tokenGenerator, RootCA: rootCA})
	if err != nil {
		return err
	}
	publisher, err := rootcacertpublisher.NewPublisher(core.ConfigMaps(), core.Namespaces(), client, rootCA)
	if err != nil {
		return err
	}
	namespaces := namespace.NewNamespaceController(ctx, client, metadataClient, client.Discovery().ServerPreferredNamespacedResources,
		core.Namespaces(), time.Minute, corev1.FinalizerKubernetes)

	// Without this one the roles admin, edit and view are empty, and tests of impersonation mean nothing.
	roles := clusterroleaggregation.NewClusterRoleAggregation(shared.Rbac().V1().ClusterRoles(), client.RbacV1())

	deployments, err := deployment.NewDeploymentController(ctx, apps.Deployments(), apps.ReplicaSets(), core.Pods(), client)
	if err != nil {
		return err
	}
	replicaSets := replicaset.NewReplicaSetController(ctx, apps.ReplicaSets(), core.Pods(), client, replicaset.BurstReplicas)
	jobs, err := job.NewController(ctx, core.Pods(), shared.Batch().V1().Jobs(), client)
	if err != nil {
		return err
	}

	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))
	informersStarted := make(chan struct{})
	collector, err := garbagecollector.NewGarbageCollector(ctx, client, metadataClient, mapper, garbagecollector.DefaultIgnoredResources(),
		informerfactory.NewInformerFactory(shared, sharedMetadata), informersStarted)
	if err != nil {
		return err
	}

	go accounts.Run(ctx, workers)
	go tokens.Run(ctx, workers)
	go publisher.Run(ctx, workers)
	go namespaces.Run(ctx, 5)
	go roles.Run(ctx, workers)
	go deployments.Run(ctx, workers)
	go replicaSets.Run(ctx, workers)
	go jobs.Run(ctx, workers)
	go collector.Run(ctx, 5, 30*time.Second)
	// Often, so that objects of a new custom resource are collected soon.
	go collector.Sync(ctx, client.Discovery(), 5*time.Second)

	shared.Start(ctx.Done())
	sharedMetadata.Start(ctx.Done())
	close(informersStarted)
	return nil
}
