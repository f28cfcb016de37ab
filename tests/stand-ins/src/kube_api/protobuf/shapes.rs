//! Which field of which message is what: the numbers are those of the Kubernetes API's own messages. Data only; reading
//! is next door.

/// A message: its name and fields by number.
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) fields: &'static [(u64, &'static str, Kind)],
}

pub(super) enum Kind {
    Text,
    Texts,
    /// Zero means absent.
    Number,
    /// Absent when not sent, so zero means zero.
    OptionalNumber,
    Flag,
    OptionalFlag,
    One(&'static Shape),
    Many(&'static Shape),
    TextMap,
    Base64Map,
    QuantityMap,
    IntOrString,
    /// The server decides; what clients send is dropped, as with JSON.
    Ignored,
}

use Kind::{
    Base64Map, Flag, Ignored, IntOrString, Many, Number, One, OptionalFlag, OptionalNumber, QuantityMap,
    Text, TextMap, Texts,
};

pub(super) static UNKNOWN: Shape =
    Shape { name: "Unknown", fields: &[(1, "type", One(&TYPE)), (3, "encoding", Text)] };
static TYPE: Shape = Shape { name: "TypeMeta", fields: &[(1, "apiVersion", Text), (2, "kind", Text)] };
static METADATA: Shape = Shape {
    name: "ObjectMeta",
    fields: &[
        (1, "name", Text),
        (2, "generateName", Text),
        (3, "namespace", Text),
        (4, "selfLink", Ignored),
        (5, "uid", Text),
        (6, "resourceVersion", Text),
        (7, "generation", Ignored),
        (8, "creationTimestamp", Ignored),
        (11, "labels", TextMap),
        (12, "annotations", TextMap),
        (14, "finalizers", Texts),
        (17, "managedFields", Ignored),
    ],
};
static NAMESPACE: Shape = Shape {
    name: "Namespace",
    fields: &[(1, "metadata", One(&METADATA)), (2, "spec", Ignored), (3, "status", Ignored)],
};
static CONFIG_MAP: Shape = Shape {
    name: "ConfigMap",
    fields: &[
        (1, "metadata", One(&METADATA)),
        (2, "data", TextMap),
        (3, "binaryData", Base64Map),
        (4, "immutable", OptionalFlag),
    ],
};
static SECRET: Shape = Shape {
    name: "Secret",
    fields: &[
        (1, "metadata", One(&METADATA)),
        (2, "data", Base64Map),
        (3, "type", Text),
        (4, "stringData", TextMap),
        (5, "immutable", OptionalFlag),
    ],
};
static LOCAL_REFERENCE: Shape = Shape { name: "LocalObjectReference", fields: &[(1, "name", Text)] };
static SERVICE_ACCOUNT: Shape = Shape {
    name: "ServiceAccount",
    fields: &[(1, "metadata", One(&METADATA)), (3, "imagePullSecrets", Many(&LOCAL_REFERENCE))],
};
static SERVICE: Shape = Shape {
    name: "Service",
    fields: &[(1, "metadata", One(&METADATA)), (2, "spec", One(&SERVICE_SPEC)), (3, "status", Ignored)],
};
static SERVICE_SPEC: Shape = Shape {
    name: "ServiceSpec",
    fields: &[
        (1, "ports", Many(&SERVICE_PORT)),
        (2, "selector", TextMap),
        (3, "clusterIP", Text),
        (4, "type", Text),
        (5, "externalIPs", Texts),
        (7, "sessionAffinity", Text),
        (8, "loadBalancerIP", Text),
        (10, "externalName", Text),
        (11, "externalTrafficPolicy", Text),
        (13, "publishNotReadyAddresses", Flag),
        (18, "clusterIPs", Texts),
    ],
};
static SERVICE_PORT: Shape = Shape {
    name: "ServicePort",
    fields: &[
        (1, "name", Text),
        (2, "protocol", Text),
        (3, "port", Number),
        (4, "targetPort", IntOrString),
        (5, "nodePort", Number),
    ],
};
static POD: Shape = Shape {
    name: "Pod",
    fields: &[(1, "metadata", One(&METADATA)), (2, "spec", One(&POD_SPEC)), (3, "status", Ignored)],
};
static POD_TEMPLATE: Shape = Shape {
    name: "PodTemplateSpec",
    fields: &[(1, "metadata", One(&METADATA)), (2, "spec", One(&POD_SPEC))],
};
static POD_SPEC: Shape = Shape {
    name: "PodSpec",
    fields: &[
        (2, "containers", Many(&CONTAINER)),
        (3, "restartPolicy", Text),
        (4, "terminationGracePeriodSeconds", OptionalNumber),
        (6, "dnsPolicy", Text),
        (7, "nodeSelector", TextMap),
        (8, "serviceAccountName", Text),
        (9, "serviceAccount", Text),
        (10, "nodeName", Text),
        (15, "imagePullSecrets", Many(&LOCAL_REFERENCE)),
        (20, "initContainers", Many(&CONTAINER)),
    ],
};
static CONTAINER: Shape = Shape {
    name: "Container",
    fields: &[
        (1, "name", Text),
        (2, "image", Text),
        (3, "command", Texts),
        (4, "args", Texts),
        (5, "workingDir", Text),
        (6, "ports", Many(&CONTAINER_PORT)),
        (7, "env", Many(&VARIABLE)),
        (8, "resources", One(&RESOURCES)),
        (14, "imagePullPolicy", Text),
        (16, "stdin", Flag),
        (17, "stdinOnce", Flag),
        (18, "tty", Flag),
    ],
};
static CONTAINER_PORT: Shape = Shape {
    name: "ContainerPort",
    fields: &[
        (1, "name", Text),
        (2, "hostPort", Number),
        (3, "containerPort", Number),
        (4, "protocol", Text),
    ],
};
static VARIABLE: Shape = Shape { name: "EnvVar", fields: &[(1, "name", Text), (2, "value", Text)] };
static RESOURCES: Shape = Shape {
    name: "ResourceRequirements",
    fields: &[(1, "limits", QuantityMap), (2, "requests", QuantityMap)],
};
static DEPLOYMENT: Shape = Shape {
    name: "Deployment",
    fields: &[(1, "metadata", One(&METADATA)), (2, "spec", One(&DEPLOYMENT_SPEC)), (3, "status", Ignored)],
};
static DEPLOYMENT_SPEC: Shape = Shape {
    name: "DeploymentSpec",
    fields: &[
        (1, "replicas", OptionalNumber),
        (2, "selector", One(&LABEL_SELECTOR)),
        (3, "template", One(&POD_TEMPLATE)),
        (4, "strategy", One(&STRATEGY)),
        (5, "minReadySeconds", Number),
        (6, "revisionHistoryLimit", OptionalNumber),
        (7, "paused", Flag),
        (9, "progressDeadlineSeconds", OptionalNumber),
    ],
};
static LABEL_SELECTOR: Shape = Shape { name: "LabelSelector", fields: &[(1, "matchLabels", TextMap)] };
static STRATEGY: Shape =
    Shape { name: "DeploymentStrategy", fields: &[(1, "type", Text), (2, "rollingUpdate", One(&ROLLING))] };
static ROLLING: Shape = Shape {
    name: "RollingUpdateDeployment",
    fields: &[(1, "maxUnavailable", IntOrString), (2, "maxSurge", IntOrString)],
};
static DELETE_OPTIONS: Shape = Shape {
    name: "DeleteOptions",
    fields: &[
        (1, "gracePeriodSeconds", OptionalNumber),
        (2, "preconditions", One(&PRECONDITIONS)),
        (3, "orphanDependents", OptionalFlag),
        (4, "propagationPolicy", Text),
        (5, "dryRun", Texts),
    ],
};
static PRECONDITIONS: Shape =
    Shape { name: "Preconditions", fields: &[(1, "uid", Text), (2, "resourceVersion", Text)] };

/// The message of a kind, if it is read in this form.
pub(super) fn shape_of(kind: &str) -> Option<&'static Shape> {
    let all =
        [&NAMESPACE, &CONFIG_MAP, &SECRET, &SERVICE_ACCOUNT, &SERVICE, &POD, &DEPLOYMENT, &DELETE_OPTIONS];
    all.into_iter().find(|shape| shape.name == kind)
}
