//! Which Go programs there are, and what decides how each is built.

use super::Program;

/// The module of what every cluster needs.
const CLUSTER: &str = "cluster";

/// What every cluster needs. The slowest comes first.
pub const NEEDED: [Program; 5] = [
    Program {
        name: "kubernetes",
        module: CLUSTER,
        package: "./kubernetes",
        link_flags: "-X k8s.io/component-base/version.gitVersion=v1.36.3 \
                     -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36 \
                     -X k8s.io/component-base/version.gitTreeState=clean \
                     -X k8s.io/client-go/pkg/version.gitVersion=v1.36.3 \
                     -X k8s.io/client-go/pkg/version.gitMajor=1 -X k8s.io/client-go/pkg/version.gitMinor=36",
        aliases: &[
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubelet",
            "kubectl",
        ],
    },
    Program {
        name: "coredns",
        module: CLUSTER,
        package: "./coredns",
        link_flags: "",
        aliases: &[],
    },
    Program {
        name: "metrics-server",
        module: CLUSTER,
        package: "sigs.k8s.io/metrics-server/cmd/metrics-server",
        link_flags: "",
        aliases: &[],
    },
    Program {
        name: "helm",
        module: CLUSTER,
        package: "helm.sh/helm/v3/cmd/helm",
        link_flags: "-X helm.sh/helm/v3/internal/version.version=v3.21.4",
        aliases: &[],
    },
    Program {
        name: "etcd",
        module: CLUSTER,
        package: "go.etcd.io/etcd/server/v3",
        link_flags: "",
        aliases: &[],
    },
];

/// What only some drills, tests and benchmarks need; built when asked for by name. Their modules are their own: what
/// they require is of other releases than a cluster's.
pub const ON_DEMAND: [Program; 3] = [
    Program {
        name: "vault",
        module: "vault",
        package: ".",
        link_flags: "",
        aliases: &[],
    },
    Program {
        name: "cert-manager",
        module: "cert-manager",
        package: "github.com/cert-manager/cert-manager/cmd/controller",
        link_flags: "-X github.com/cert-manager/cert-manager/pkg/util.AppVersion=v1.11.5",
        aliases: &[],
    },
    Program {
        name: "istiod",
        module: "istiod",
        package: "istio.io/istio/pilot/cmd/pilot-discovery",
        link_flags: "",
        aliases: &[],
    },
];
