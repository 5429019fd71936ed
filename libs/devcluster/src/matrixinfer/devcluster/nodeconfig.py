"""Configuration files of what makes a node: kubelet, containerd, its network plugin, kube-proxy and CoreDNS.

Owns every line of them, as pure functions of where things are. The addresses are constants: each node has a network
namespace to itself, so nothing can collide.

The traps, each seen: a machine without CAP_SYS_RESOURCE fails every sandbox unless containerd restricts OOM scores
and kubelet and kube-proxy leave theirs alone; image garbage collection would remove images that no registry can
bring back; kubelet enforces a minimum of free disk that a full laptop does not have.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrixinfer.devcluster.components import CLUSTER_DNS_ZONE
from matrixinfer.devcluster.layout import Instance

__all__ = [
    "API_PORT",
    "BRIDGE",
    "BRIDGE_ADDRESS",
    "DNS_READY_PORT",
    "NODE_NAME",
    "PAUSE_IMAGE",
    "POD_NETWORK",
    "NodePaths",
    "cni_network",
    "containerd",
    "corefile",
    "dns_role",
    "kube_proxy",
    "kubelet",
]

BRIDGE = "cni0"
BRIDGE_ADDRESS = "10.244.0.1"
POD_NETWORK = "10.244.0.0/16"
API_PORT = 6443
NODE_NAME = "node-0"
PAUSE_IMAGE = "matrixinfer/pause:1"
DNS_READY_PORT = 8181


@dataclass(frozen=True, slots=True)
class NodePaths:
    """The files of a node beside those of the control plane."""

    place: Instance

    @property
    def netns(self) -> Path:
        """The network namespace, as a mount."""
        return self.place.run / "net"

    @property
    def socket(self) -> Path:
        """containerd's socket."""
        return self.place.run / "containerd.sock"

    @property
    def containerd_root(self) -> Path:
        """Images and snapshots."""
        return self.place.data / "containerd"

    @property
    def containerd_state(self) -> Path:
        """Bundles, mounts and namespaces of running containers."""
        return self.place.run / "containerd"

    @property
    def config(self) -> Path:
        """The folder of the files that this module renders."""
        return self.place.data / "config"

    @property
    def kubelet_root(self) -> Path:
        """Pods' volumes."""
        return self.place.data / "kubelet"

    @property
    def pod_logs(self) -> Path:
        """Containers' logs."""
        return self.place.data / "pod-logs"

    @property
    def cgroup(self) -> str:
        """The control group of all pods, below each hierarchy's root."""
        return self.place.ident


def containerd(paths: NodePaths, snapshotter: str, cni_programs: Path) -> str:
    """Return containerd's configuration (version 2, which 1.6 and 2.x read)."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = "{paths.containerd_root}"
state = "{paths.containerd_state}"
oom_score = 0

[grpc]
address = "{paths.socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{paths.containerd_root / "opt"}"

[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"

[{cri}.cni]
bin_dir = "{cni_programs}"
conf_dir = "{paths.config / "cni"}"

[{cri}.containerd]
snapshotter = "{snapshotter}"

[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
Root = "{paths.place.run / "runc"}"
SystemdCgroup = false
"""


def cni_network(paths: NodePaths) -> dict[str, Any]:
    """Return the pods' network: one bridge, addresses handed out from a folder of ours."""
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(paths.place.run / "ipam"),
            "ranges": [[{"subnet": POD_NETWORK, "gateway": BRIDGE_ADDRESS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    # The name is that of result files in a folder that all clusters of the machine share.
    return {"cniVersion": "0.4.0", "name": paths.place.ident, "plugins": [bridge, portmap]}


def kubelet(paths: NodePaths) -> dict[str, Any]:
    """Return kubelet's configuration."""
    pki = paths.place.pki
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": BRIDGE_ADDRESS,
        "containerRuntimeEndpoint": f"unix://{paths.socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{paths.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "clusterDNS": [BRIDGE_ADDRESS],
        "clusterDomain": CLUSTER_DNS_ZONE,
        # The machine's own search list and resolvers are not the pods' business.
        "resolvConf": str(paths.config / "resolv.conf"),
        "podLogsDir": str(paths.pod_logs),
        "volumePluginDir": str(paths.kubelet_root / "volume-plugins"),
        "tlsCertFile": str(pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet.key"),
        "authentication": {
            "x509": {"clientCAFile": str(pki / "ca.crt")},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "registerNode": True,
        "readOnlyPort": 0,
        "maxPods": 200,
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "serializeImagePulls": False,
        "shutdownGracePeriod": "0s",
        # Nobody wants to wait five minutes for a demo that crashed a few times while its parts came up.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
    }


def kube_proxy(paths: NodePaths, *, masquerade_all: bool) -> dict[str, Any]:
    """Return kube-proxy's configuration; it writes nftables, and changes no limit of the kernel's."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(paths.place.kubeconfigs / "kube-proxy.yaml")},
        "hostnameOverride": NODE_NAME,
        "clusterCIDR": POD_NETWORK,
        "bindAddress": BRIDGE_ADDRESS,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "oomScoreAdj": 0,
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nftables": {"masqueradeAll": masquerade_all, "minSyncPeriod": "0.1s", "syncPeriod": "30s"},
    }


def corefile(paths: NodePaths) -> str:
    """Return CoreDNS's configuration: names of Services and pods only, hardly cached, so that tests see changes."""
    return f""".:53 {{
    errors
    health 127.0.0.1:8180
    ready 127.0.0.1:{DNS_READY_PORT}
    cache {{
        success 4096 5
        denial 4096 1
    }}
    kubernetes {CLUSTER_DNS_ZONE} in-addr.arpa ip6.arpa {{
        kubeconfig {paths.place.kubeconfigs / "coredns.yaml"}
        pods insecure
        ttl 5
    }}
}}
"""


def dns_role() -> list[dict[str, Any]]:
    """Return the rights of CoreDNS, whose certificate names the user `system:coredns`."""
    reads = ["list", "watch"]
    meta = {"name": "system:coredns"}
    group = "rbac.authorization.k8s.io"
    return [
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRole",
            "metadata": meta,
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": reads},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": reads},
            ],
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "system:coredns"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": "system:coredns"}],
        },
    ]
