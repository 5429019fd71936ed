"""Tier A: etcd, API server, controller manager and scheduler on loopback, without root.

Owns bringing them up and down and being a handle on them. What runs on nodes is simulated (`simnodes`) or is tier B
(`node`). All processes are detached: they live until `down`, or until the last process that borrowed them has ended.

The trap: free ports are only free until someone else takes them, so a start that finds its port taken is repeated with
others. etcd and the API server know each other by certificate, so a mix-up of ports cannot mix up clusters.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import orjson
import yaml

from matrixinfer.devcluster import components, kubeconfig, pki, state
from matrixinfer.devcluster.binaries import CONTROL_PLANE, Binaries, build, locate
from matrixinfer.devcluster.components import Addresses, Options
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.kubeconfig import Access, Credentials
from matrixinfer.devcluster.layout import Instance, instance
from matrixinfer.devcluster.leftovers import remove_tree
from matrixinfer.devcluster.processes import Ledger
from matrixinfer.devcluster.rest import Answer, Api
from matrixinfer.devcluster.state import State

__all__ = ["ControlPlane", "free_ports", "quiet", "wait_for"]

Say = Callable[[str], None]

_KEEPER = "keeper"
_START_SECONDS = 120
_OUR_PORTS = range(12_000, 32_000)


def quiet(_: str) -> None:
    """Say nothing."""


class ControlPlane:
    """A running control plane: where it is, how to call it, how to stop it."""

    tier = "a"

    def __init__(self, place: Instance) -> None:
        self.place = place
        self.ledger = Ledger(place.processes, place.logs)

    @classmethod
    def up(cls, name: str = "dev", *, options: Options | None = None, say: Say = quiet) -> Self:
        """Return the control plane `name`, started if it does not run; it stays until `down`."""
        plane = cls(instance(name))
        with state.transition(plane.place) as lock:
            plane._ensure_up(lock, options or Options(), say)
            state.save(plane.place, replace(plane.state, kept=True))
        return plane

    @classmethod
    def attach(cls, name: str = "dev") -> Self | None:
        """Return the control plane `name` if it is up."""
        plane = cls(instance(name))
        return plane if plane.is_up() else None

    @classmethod
    @contextmanager
    def borrowed(cls, name: str, *, options: Options | None = None, say: Say = quiet) -> Iterator[Self]:
        """Share the control plane `name` with other processes; the last one to leave, or to die, takes it down."""
        plane = cls(instance(name))
        with ExitStack() as use:
            with state.transition(plane.place) as lock:
                plane._ensure_up(lock, options or Options(), say)
                use.enter_context(state.hold_as_user(plane.place))
                if _KEEPER not in plane.ledger.running():
                    argv = [sys.executable, "-m", "matrixinfer.devcluster", "keep", "--name", name, "--tier", cls.tier]
                    plane.ledger.start(_KEEPER, argv, lock=lock)
            yield plane
        plane.down_if_unused()

    @property
    def state(self) -> State:
        """What is remembered of the cluster."""
        found = state.load(self.place)
        if found is None:
            raise ClusterError(f"cluster {self.place.name!r} is not up")
        return found

    @property
    def base_url(self) -> str:
        """The API server's URL on this machine."""
        return self.state.server

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.place.kubeconfig

    @property
    def audit_log(self) -> Path:
        """One JSON event a line for each request of a ServiceAccount outside kube-system."""
        return self.place.audit_log

    def audited(self, user: str, since: float = 0.0) -> list[Answer]:
        """Return what a ServiceAccount asked for since a moment (Unix time); a line comes just after its answer."""
        # The last line may be half written.
        lines = self.audit_log.read_text(encoding="utf-8").split("\n")[:-1]
        events = [orjson.loads(line) for line in lines if user in line]
        return [e for e in events if e["user"]["username"] == user and _received(e) >= since]

    @property
    def kubectl(self) -> Path:
        """A kubectl of the server's own version."""
        return self.binaries()["kubectl"]

    @property
    def api(self) -> Api:
        """A client with the administrator's rights."""
        return Api.of(self.kubeconfig)

    @classmethod
    def binaries(cls, say: Say = quiet) -> Binaries:
        """Return the programs of this tier, building them when there are none."""
        return locate(cls._programs()) or build(say)

    @classmethod
    def _programs(cls) -> Sequence[str]:
        return CONTROL_PLANE

    def is_up(self) -> bool:
        """Whether it was brought up, all its processes run, and the API server is ready."""
        found = state.load(self.place)
        if found is None or not found.ready or found.tier != self.tier:
            return False
        if not set(found.commands) <= set(self.ledger.running()):
            return False
        return self.api.text("/readyz", seconds=5)[0] == 200

    def kubeconfig_for(self, namespace: str, service_account: str, *, valid: timedelta = timedelta(hours=12)) -> Path:
        """Return a kubeconfig with a fresh token of this ServiceAccount, which must exist."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        request: Answer = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": int(valid.total_seconds())},
        }
        token = str(self.api.create(path, request)["status"]["token"])
        access = Access(self.base_url, (self.place.pki / "ca.crt").read_bytes(), Credentials(token=token), namespace)
        return kubeconfig.write(self.place.kubeconfigs / f"{namespace}.{service_account}.yaml", access)

    def run_kubectl(self, *arguments: str | Path, stdin: str = "", seconds: float = 60) -> str:
        """Run kubectl as administrator and return what it printed; its complaint becomes the error."""
        argv = [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *map(str, arguments)]
        what = f"kubectl {' '.join(map(str, arguments))}"
        try:
            done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as late:
            raise ClusterError(f"{what}: not done within {seconds:.0f} s") from late
        if done.returncode != 0:
            raise ClusterError(f"{what}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, source: Path | Sequence[Answer]) -> str:
        """Apply a file, a folder of manifests, a kustomization, or manifests; returns what kubectl said."""
        verb = ("apply", "--server-side", "--force-conflicts")
        if not isinstance(source, Path):
            return self.run_kubectl(*verb, "-f", "-", stdin=yaml.safe_dump_all(source))
        return self.run_kubectl(*verb, "-k" if (source / "kustomization.yaml").is_file() else "-f", source)

    def kill(self, component: str) -> None:
        """Kill one component (SIGKILL) and leave it dead."""
        with state.transition(self.place):
            self.ledger.stop(component, hard=True)

    def restart(self, component: str, *, hard: bool = False) -> None:
        """Stop one component (`hard`: SIGKILL) and start it again as it was; waits for the API server's readiness."""
        with state.transition(self.place) as lock:
            self.ledger.stop(component, hard=hard)
            self.ledger.start(component, self.state.commands[component], lock=lock)
        wait_for("the API server", self._ready, _START_SECONDS, self._fail_if_dead)

    def down(self) -> None:
        """Stop everything that was ever started under this name and forget it."""
        with state.transition(self.place):
            self._clean_up()
            remove_tree(self.place.folder)

    def down_if_unused(self) -> None:
        """Go down, unless someone borrows the cluster or asked to keep it."""
        with state.transition(self.place):
            found = state.load(self.place)
            if found is None and not self.place.logs.exists():
                # Another user was the last; taking the lock has only brought the folder back.
                remove_tree(self.place.folder)
            elif found is not None and not found.kept and state.is_unused(self.place):
                self._clean_up()
                remove_tree(self.place.folder)

    def _ensure_up(self, lock: int, options: Options, say: Say) -> None:
        if self.is_up():
            return
        programs = self.binaries(say)
        for attempt in range(3):
            self._clean_up()
            # Logs outlive a failed start, so that what went wrong can be read; a new start begins new ones.
            shutil.rmtree(self.place.logs, ignore_errors=True)
            try:
                self._start(lock, programs, options, say)
            except _PortTakenError:
                if attempt == 2:
                    raise
            else:
                return

    def _start(self, lock: int, programs: Binaries, options: Options, say: Say) -> None:
        api_port, etcd_port, peer_port = free_ports(3)
        addresses = Addresses("127.0.0.1", api_port, etcd_port, peer_port)
        self._start_control_plane(lock, programs, addresses, addresses.server, options, say)
        state.save(self.place, replace(self.state, ready=True))

    def _start_control_plane(
        self,
        lock: int,
        programs: Binaries,
        addresses: Addresses,
        server: str,
        options: Options,
        say: Say,
        enter: Sequence[str] = (),
    ) -> None:
        """Start the four components; `enter` is put before each command line, `server` is the URL for outsiders."""
        started = time.monotonic()
        self._write_identities(addresses, server)
        policy = self.place.data / "audit-policy.yaml"
        policy.write_text(yaml.safe_dump(components.audit_policy()), encoding="utf-8")
        rendered = components.control_plane_commands(self.place, programs, addresses, options)
        commands = {name: [*enter, *argv] for name, argv in rendered.items()}
        before = state.load(self.place) or State(tier=self.tier, server=server)
        state.save(self.place, replace(before, commands={**before.commands, **commands}))
        names = list(commands)
        say("starting etcd and the API server")
        for name in names[:2]:
            self.ledger.start(name, commands[name], lock=lock)
        wait_for("the API server", self._ready, _START_SECONDS, self._fail_if_dead)
        say("starting the controller manager and the scheduler")
        for name in names[2:]:
            self.ledger.start(name, commands[name], lock=lock)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        wait_for("the controller manager", lambda: self.api.exists(account), _START_SECONDS, self._fail_if_dead)
        say(f"control plane ready after {time.monotonic() - started:.1f} s")

    def _write_identities(self, addresses: Addresses, server: str) -> pki.Authority:
        """Make the keys and kubeconfigs of the control plane."""
        now = datetime.now(UTC)
        authority = pki.Authority.create(self.place.pki, now)
        authority.issue("etcd", "etcd", now, names=["localhost", "127.0.0.1"])
        authority.issue("apiserver", "kube-apiserver", now, names=components.server_names(addresses))
        authority.issue("apiserver-etcd", "kube-apiserver", now)
        authority.issue("apiserver-kubelet", "kube-apiserver", now, groups=["system:masters"])
        pki.write_service_account_key(self.place.pki)
        admin = authority.issue("admin", "devcluster-admin", now, groups=["system:masters"])
        ca = authority.ca.read_bytes()
        kubeconfig.write(self.place.kubeconfig, Access(server, ca, Credentials.of(admin)))
        for name in ("kube-controller-manager", "kube-scheduler"):
            credentials = Credentials.of(authority.issue(name, f"system:{name}", now))
            path = self.place.kubeconfigs / f"{name}.yaml"
            kubeconfig.write(path, Access(addresses.server, ca, credentials))
        return authority

    def _ready(self) -> bool:
        return self.api.text("/readyz", seconds=5)[0] == 200

    def _fail_if_dead(self) -> None:
        """Raise with the end of the log when a process that was started has ended."""
        running = self.ledger.running()
        for name in self.state.commands:
            if name in running or self.ledger.recorded(name) is None:
                continue
            tail = self.ledger.tail(name)
            message = f"{name} ended; the end of {self.ledger.log(name)}:\n{tail}"
            raise _PortTakenError(message) if "address already in use" in tail else ClusterError(message)

    def _clean_up(self) -> None:
        """Stop what runs, whoever started it; called with the transition lock held."""
        # The keeper calls this too, and must live to the end of it.
        names = [n for n, who in self.ledger.running().items() if who.pid != os.getpid()]
        # The API server drains for a minute when its clients hang on; nothing of a throw-away cluster needs that.
        order = [n for n in names if n not in {"etcd", "kube-apiserver"}]
        self.ledger.stop(*order, patience_seconds=3)
        self.ledger.stop("kube-apiserver", "etcd", hard=True)
        self._release_machine()
        for folder in (self.place.processes, self.place.data):
            remove_tree(folder)
        self.place.state_file.unlink(missing_ok=True)

    def _release_machine(self) -> None:
        """Remove what a tier leaves on the machine beside files; all processes have been stopped."""


class _PortTakenError(ClusterError):
    """Someone took a port between choosing and using it."""


def _received(event: Answer) -> float:
    return datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Return ports that nobody listens on now.

    They lie below the range that the kernel gives to outgoing connections: a server that is restarted must find its
    port free, and not held by somebody's connection.
    """
    found: list[int] = []
    with ExitStack() as open_sockets:
        while len(found) < count:
            candidate = open_sockets.enter_context(socket.socket())
            port = secrets.choice(_OUR_PORTS)
            with suppress(OSError):
                candidate.bind((address, port))
                found.append(port)
    return found


def wait_for(what: str, is_true: Callable[[], bool], seconds: float, check: Callable[[], None] = lambda: None) -> None:
    """Poll until `is_true`; `check` may raise earlier, and after `seconds` this does."""
    deadline = time.monotonic() + seconds
    while not is_true():
        check()
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} was not ready within {seconds:.0f} s")
        time.sleep(0.05)
