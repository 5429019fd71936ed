"""Command lines and configuration files of the components, as pure functions of where things are.

Owns every flag and every line of configuration; starting what they describe is the business of `controlplane` and
`node`. One flag a line, so that a change shows as what it is.

The trap: Endpoints refuse loopback addresses, so a control plane on loopback keeps no `kubernetes` Endpoints at all
(`--endpoint-reconciler-type=none`); one that listens on a bridge must advertise that bridge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matrixinfer.devcluster.binaries import Binaries
from matrixinfer.devcluster.layout import Instance

__all__ = [
    "CLUSTER_DNS_ZONE",
    "SERVICE_NETWORK",
    "Addresses",
    "Options",
    "audit_policy",
    "control_plane_commands",
    "server_names",
]

SERVICE_NETWORK = "10.96.0.0/16"
_FIRST_SERVICE_ADDRESS = "10.96.0.1"
CLUSTER_DNS_ZONE = "cluster.local"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the control plane listens; `advertise` is empty when no pod will ever call it."""

    bind: str
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    advertise: str = ""

    @property
    def server(self) -> str:
        """The API server's URL as its neighbours on the same network use it."""
        return f"https://{self.bind}:{self.api_port}"


@dataclass(frozen=True, slots=True)
class Options:
    """What may differ between control planes.

    `node_lifecycle` off means that simulated nodes need no heartbeat; `scheduler_qps` lifts the scheduler's client
    throttle for scale runs; `api_server_flags` are added as they are.
    """

    node_lifecycle: bool = False
    scheduler_qps: int = 0
    api_server_flags: tuple[str, ...] = ()


def server_names(addresses: Addresses) -> Sequence[str]:
    """Return all names and addresses by which clients may call the API server."""
    inside = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    inside.append(f"kubernetes.default.svc.{CLUSTER_DNS_ZONE}")
    return list(dict.fromkeys(["localhost", "127.0.0.1", _FIRST_SERVICE_ADDRESS, addresses.bind, *inside]))


def audit_policy() -> dict[str, Any]:
    """Record who did which verb on what, for ServiceAccounts outside kube-system: ours, in other words."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
            {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
            {"level": "None"},
        ],
    }


def control_plane_commands(
    instance: Instance, binaries: Binaries, addresses: Addresses, options: Options
) -> dict[str, list[str]]:
    """Return the command line of each component, in the order of starting."""
    return {
        "etcd": _etcd(instance, binaries, addresses),
        "kube-apiserver": _api_server(instance, binaries, addresses, options),
        "kube-controller-manager": _controller_manager(instance, binaries, options),
        "kube-scheduler": _scheduler(instance, binaries, options),
    }


def _etcd(instance: Instance, binaries: Binaries, addresses: Addresses) -> list[str]:
    client = f"https://127.0.0.1:{addresses.etcd_port}"
    peer = f"https://127.0.0.1:{addresses.etcd_peer_port}"
    return [
        str(binaries["etcd"]),
        f"--data-dir={instance.data / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--peer-auto-tls",
        f"--cert-file={instance.pki / 'etcd.crt'}",
        f"--key-file={instance.pki / 'etcd.key'}",
        "--client-cert-auth",
        f"--trusted-ca-file={instance.pki / 'ca.crt'}",
        # A test cluster is thrown away after a crash of the machine: waiting for the disk buys nothing.
        "--unsafe-no-fsync",
        "--logger=zap",
        "--log-level=warn",
    ]


def _api_server(instance: Instance, binaries: Binaries, addresses: Addresses, options: Options) -> list[str]:
    pki = instance.pki
    reached = [
        f"--advertise-address={addresses.advertise}",
        "--enable-aggregator-routing=true",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged=true",
    ]
    return [
        str(binaries["kube-apiserver"]),
        f"--bind-address={addresses.bind}",
        f"--secure-port={addresses.api_port}",
        *(reached if addresses.advertise else ["--endpoint-reconciler-type=none"]),
        f"--etcd-servers=https://127.0.0.1:{addresses.etcd_port}",
        f"--etcd-cafile={pki / 'ca.crt'}",
        f"--etcd-certfile={pki / 'apiserver-etcd.crt'}",
        f"--etcd-keyfile={pki / 'apiserver-etcd.key'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DNS_ZONE}",
        f"--service-account-key-file={pki / 'service-account.pub'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--audit-policy-file={instance.data / 'audit-policy.yaml'}",
        f"--audit-log-path={instance.audit_log}",
        # Tests read the whole file: it must not be rotated away under them.
        "--audit-log-maxsize=100000",
        "--max-requests-inflight=1600",
        "--max-mutating-requests-inflight=800",
        # An explanation that a request was slow helps nobody here.
        "--profiling=false",
        *options.api_server_flags,
    ]


def _controller_manager(instance: Instance, binaries: Binaries, options: Options) -> list[str]:
    controllers = "*" if options.node_lifecycle else "*,-node-lifecycle-controller"
    return [
        str(binaries["kube-controller-manager"]),
        f"--kubeconfig={instance.kubeconfigs / 'kube-controller-manager.yaml'}",
        f"--service-account-private-key-file={instance.pki / 'service-account.key'}",
        f"--root-ca-file={instance.pki / 'ca.crt'}",
        "--use-service-account-credentials",
        f"--controllers={controllers}",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--concurrent-gc-syncs=20",
    ]


def _scheduler(instance: Instance, binaries: Binaries, options: Options) -> list[str]:
    qps = options.scheduler_qps
    throttle = [f"--kube-api-qps={qps}", f"--kube-api-burst={2 * qps}"] if qps else []
    return [
        str(binaries["kube-scheduler"]),
        f"--kubeconfig={instance.kubeconfigs / 'kube-scheduler.yaml'}",
        "--leader-elect=false",
        "--secure-port=0",
        *throttle,
    ]
