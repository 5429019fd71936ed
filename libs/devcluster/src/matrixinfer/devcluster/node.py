"""Tier B: a whole node (kubelet, containerd, kube-proxy, CoreDNS) with its control plane, in one network namespace.

Owns bringing all of it up and down, images, and publishing what is inside on loopback outside. Needs root on Linux;
`diagnose` says what else. Nothing of the machine's own network is touched.

The traps: containers outlive kubelet and containerd, and mounts outlive both, so `down` goes by what the kernel shows
and not by what was remembered. Nothing is removed before it is unmounted.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from subprocess import run as run_program

import orjson
import yaml

from matrixinfer.devcluster import forward, kubeconfig, leftovers, netns, nodeconfig, pki, s3, state
from matrixinfer.devcluster.archive import write_image
from matrixinfer.devcluster.binaries import NODE, Binaries, build_extra, build_pause, locate
from matrixinfer.devcluster.components import SERVICE_NETWORK, Addresses, Options
from matrixinfer.devcluster.controlplane import ControlPlane, free_ports, quiet, wait_for
from matrixinfer.devcluster.diagnose import CNI_PROGRAMS, filesystem_type, findings, look, search_path
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.kubeconfig import Access, Credentials
from matrixinfer.devcluster.layout import Instance
from matrixinfer.devcluster.nodeconfig import API_PORT, BRIDGE_ADDRESS, NODE_NAME, NodePaths
from matrixinfer.devcluster.rest import Answer
from matrixinfer.devcluster.s3 import ObjectStore
from matrixinfer.devcluster.state import State

__all__ = ["S3_PORT", "Node"]

Say = Callable[[str], None]

S3_PORT = 7070
_START_SECONDS = 120
_IMPORT_SECONDS = 300


class Node(ControlPlane):
    """A running cluster of one node."""

    tier = "b"

    def __init__(self, place: Instance) -> None:
        super().__init__(place)
        self.paths = NodePaths(place)

    @classmethod
    def _programs(cls) -> Sequence[str]:
        return NODE

    def load_image(self, archive: Path) -> list[str]:
        """Import an image archive (docker or OCI) into the node; returns the names that it now knows."""
        printed = self.ctr("images", "import", str(archive))
        return [line.split()[1] for line in printed.splitlines() if line.startswith("unpacking ")]

    def ctr(self, *arguments: str) -> str:
        """Run containerd's own client in the namespace of Kubernetes."""
        argv = ["ctr", f"--address={self.paths.socket}", "--namespace=k8s.io", *arguments]
        env = {**os.environ, "PATH": search_path()}
        done = run_program(argv, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False, env=env)
        if done.returncode != 0:
            raise ClusterError(f"`ctr {' '.join(arguments)}` failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def kill_container(self, pod: str, namespace: str, container: str) -> None:
        """Kill the first process of a running container (SIGKILL), as a crash or the kernel would."""
        status = self.api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")["status"]
        ids = {each["name"]: str(each["containerID"]) for each in status["containerStatuses"]}
        self.ctr("tasks", "kill", "--signal", "SIGKILL", ids[container].removeprefix("containerd://"))

    def publish(self, service: str, namespace: str, port: int) -> int:
        """Forward a port of 127.0.0.1 to this Service's port; returns the local port, the same one each time."""
        path = f"/api/v1/namespaces/{namespace}/services/{service}"
        address = str(self.api.get(path)["spec"]["clusterIP"])
        return self._forward(f"{namespace}.{service}.{port}", address, port)

    def publish_pod(self, pod: str, namespace: str, port: int) -> int:
        """Forward a port of 127.0.0.1 to this pod's port; returns the local port."""
        address = str(self.api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")["status"]["podIP"])
        return self._forward(f"{namespace}.{pod}.{address}.{port}", address, port)

    def start_object_store(self, namespace: str, name: str = "s3", say: Say = quiet) -> ObjectStore:
        """Run an S3 server that pods call `http://<name>.<namespace>.svc:7070`; the endpoint returned is for here."""
        folder, keys_file = self.place.data / "s3", self.place.data / "s3-keys.json"
        with state.transition(self.place) as lock:
            if "s3" not in self.ledger.running():
                for part in ("buckets", "metadata"):
                    (folder / part).mkdir(parents=True, exist_ok=True)
                if not keys_file.exists():
                    keys_file.write_bytes(orjson.dumps(s3.new_keys()))
                keys = ObjectStore("", *orjson.loads(keys_file.read_bytes()))
                server = s3.command(build_extra("versitygw", say), f"{BRIDGE_ADDRESS}:{S3_PORT}", folder)
                argv = [*netns.enter_command(self.paths.netns), *server]
                self.ledger.start("s3", argv, lock=lock, env=keys.server_env)
        self.apply(_object_store_manifests(namespace, name))
        port = self.publish(name, namespace, S3_PORT)
        store = ObjectStore(f"http://127.0.0.1:{port}", *orjson.loads(keys_file.read_bytes()))
        wait_for("the S3 server", store.is_up, 30)
        return store

    def _forward(self, label: str, address: str, port: int) -> int:
        name = f"forward.{label}"
        with state.transition(self.place) as lock:
            found = self.state
            local = found.published.get(label)
            if local is not None and name in self.ledger.running():
                return local
            if local is None:
                (local,) = free_ports(1)
            self.ledger.start(name, forward.command(sys.executable, self.paths.netns, local, address, port), lock=lock)
            state.save(self.place, replace(found, published={**found.published, label: local}))
        wait_for(f"the forwarder to {label}", lambda: _listens(local), 10)
        return local

    def _ensure_up(self, lock: int, options: Options, say: Say) -> None:
        if self.is_up():
            return
        machine = look(self.place.folder, built=locate(NODE) is not None)
        if fatal := [str(each) for each in findings(machine) if each.fatal]:
            raise ClusterError("a local node cannot start here:\n  - " + "\n  - ".join(fatal))
        super()._ensure_up(lock, replace(options, node_lifecycle=True), say)

    def _start(self, lock: int, programs: Binaries, options: Options, say: Say) -> None:
        started = time.monotonic()
        paths = self.paths
        paths.config.mkdir(parents=True)
        paths.place.run.mkdir(parents=True)
        (paths.config / "kernel-settings.json").write_bytes(orjson.dumps(leftovers.read_kernel_settings()))
        leftovers.make_cgroups(paths.cgroup)
        netns.make(paths.netns, nodeconfig.BRIDGE, f"{BRIDGE_ADDRESS}/16", SERVICE_NETWORK)
        # A user's PATH may leave out where nft and runc are; a restart must find them too.
        enter = [*netns.enter_command(paths.netns), "env", f"PATH={search_path()}"]
        (local_port,) = free_ports(1)
        server = f"https://127.0.0.1:{local_port}"
        to_api = forward.command(sys.executable, paths.netns, local_port, BRIDGE_ADDRESS, API_PORT)
        runtime = ["containerd", f"--config={paths.config / 'containerd.toml'}"]
        self._configure()
        state.save(self.place, State(tier=self.tier, server=server))
        say("starting containerd")
        self._start_all(lock, {"containerd": [*enter, *runtime], "forward.api": to_api})
        addresses = Addresses(BRIDGE_ADDRESS, API_PORT, 2379, 2380, advertise=BRIDGE_ADDRESS)
        self._start_control_plane(lock, programs, addresses, server, options, say, enter)
        self._start_node(lock, programs, enter, say)
        state.save(self.place, replace(self.state, ready=True))
        say(f"node ready after {time.monotonic() - started:.1f} s")

    def _start_node(self, lock: int, programs: Binaries, enter: Sequence[str], say: Say) -> None:
        paths, place = self.paths, self.place
        self.apply(nodeconfig.dns_role())
        wait_for("containerd", self._runtime_answers, _START_SECONDS, self._fail_if_dead)
        pause = place.data / "pause.tar"
        write_image(pause, nodeconfig.PAUSE_IMAGE, build_pause(say), "pause")
        self.load_image(pause)
        say("starting kubelet, kube-proxy and CoreDNS")
        commands = {
            "kubelet": [
                str(programs["kubelet"]),
                f"--config={paths.config / 'kubelet.yaml'}",
                f"--kubeconfig={place.kubeconfigs / 'kubelet.yaml'}",
                f"--root-dir={paths.kubelet_root}",
                f"--cert-dir={place.pki}",
                f"--hostname-override={NODE_NAME}",
                f"--node-ip={BRIDGE_ADDRESS}",
            ],
            "kube-proxy": [str(programs["kube-proxy"]), f"--config={paths.config / 'kube-proxy.yaml'}"],
            "coredns": [str(programs["coredns"]), "-conf", str(paths.config / "Corefile")],
        }
        self._start_all(lock, {name: [*enter, *argv] for name, argv in commands.items()})
        wait_for("the node (Ready)", self._node_is_ready, _START_SECONDS, self._fail_if_dead)
        wait_for("CoreDNS", self._dns_is_ready, _START_SECONDS, self._fail_if_dead)

    def _start_all(self, lock: int, commands: dict[str, list[str]]) -> None:
        """Start these, and remember how, so that they can be restarted."""
        found = self.state
        state.save(self.place, replace(found, commands={**found.commands, **commands}))
        for name, argv in commands.items():
            self.ledger.start(name, argv, lock=lock)

    def _configure(self) -> None:
        """Write every configuration file of the node."""
        paths = self.paths
        (paths.config / "cni").mkdir()
        for folder in (paths.pod_logs, paths.kubelet_root):
            folder.mkdir(parents=True, exist_ok=True)
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        on_overlay = filesystem_type(mountinfo, paths.containerd_root) == "overlay"
        cni = next(folder for folder in CNI_PROGRAMS if (folder / "bridge").exists())
        masquerade_all = not Path("/proc/sys/net/bridge").exists()
        files = {
            "containerd.toml": nodeconfig.containerd(paths, "native" if on_overlay else "overlayfs", cni),
            "cni/10-pods.conflist": orjson.dumps(nodeconfig.cni_network(paths)).decode(),
            "kubelet.yaml": yaml.safe_dump(nodeconfig.kubelet(paths)),
            "kube-proxy.yaml": yaml.safe_dump(nodeconfig.kube_proxy(paths, masquerade_all=masquerade_all)),
            "Corefile": nodeconfig.corefile(paths),
            "resolv.conf": "",
        }
        for name, text in files.items():
            (paths.config / name).write_text(text, encoding="utf-8")

    def _write_identities(self, addresses: Addresses, server: str) -> pki.Authority:
        authority = super()._write_identities(addresses, server)
        now = datetime.now(UTC)
        ca = authority.ca.read_bytes()
        node_names = [NODE_NAME, BRIDGE_ADDRESS]
        issued = {
            "kubelet": authority.issue(
                "kubelet", f"system:node:{NODE_NAME}", now, groups=["system:nodes"], names=node_names
            ),
            "kube-proxy": authority.issue("kube-proxy", "system:kube-proxy", now),
            "coredns": authority.issue("coredns", "system:coredns", now),
        }
        for name, pair in issued.items():
            access = Access(addresses.server, ca, Credentials.of(pair))
            kubeconfig.write(self.place.kubeconfigs / f"{name}.yaml", access)
        return authority

    def _runtime_answers(self) -> bool:
        with suppress(ClusterError):
            self.ctr("version")
            return True
        return False

    def _node_is_ready(self) -> bool:
        path = f"/api/v1/nodes/{NODE_NAME}"
        if not self.api.exists(path):
            return False
        conditions = self.api.get(path).get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def _dns_is_ready(self) -> bool:
        return netns.http_status(self.paths.netns, "127.0.0.1", nodeconfig.DNS_READY_PORT, "/ready") == 200

    def _release_machine(self) -> None:
        """Remove what is on the machine beside processes of ours: containers, mounts, control groups, links."""
        if os.geteuid() != 0:
            return
        paths, place = self.paths, self.place
        leftovers.kill_containers(paths.cgroup, paths.socket)
        leftovers.remove_shim_sockets(paths.containerd_state)
        leftovers.unmount_all([place.run, place.folder])
        leftovers.remove_tree(place.run)
        leftovers.remove_cgroups(paths.cgroup)
        leftovers.remove_shared_files(place.ident)
        leftovers.remove_links_into(Path("/var/log/containers"), paths.pod_logs)
        with suppress(FileNotFoundError):
            before = orjson.loads((paths.config / "kernel-settings.json").read_bytes())
            leftovers.restore_kernel_settings(before)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _object_store_manifests(namespace: str, name: str) -> list[Answer]:
    """Return a Service without a selector and the address behind it: the bridge, where the server listens."""
    meta = {"name": name, "namespace": namespace}
    port = {"name": "http", "port": S3_PORT, "protocol": "TCP"}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [port]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**meta, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [port],
            "endpoints": [{"addresses": [BRIDGE_ADDRESS], "conditions": {"ready": True}}],
        },
    ]
