"""How fast and how sparing the infer-controller is: 250 ModelInfers of 4 pods on a real control plane with kwok nodes.

`python -m tests.bench.controlplane` starts a control plane of its own, runs the infer-controller as it ships (its own
ServiceAccount, settings, lease), and prints ratios taken in one run, because seconds depend on the machine:

* time until 1,000 pods are Ready, against a bare loop that creates the same 1,000 pods over 50 connections;
* API writes of the controller per pod, and in the minute after, from the audit log;
* memory of the controller with 1,000 and with 10,000 pods in its cache.

The trap: the first thousand pods on a fresh control plane are slower than the next, so a warm-up comes first, and the
bare loop is taken before and after ours.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import uvloop

from matrixinfer.api import names
from matrixinfer.api.v1alpha1.kinds import MODEL_INFER
from matrixinfer.devcluster import ControlPlane, instance, repository
from matrixinfer.devcluster.binaries import build_extra
from matrixinfer.devcluster.components import Options
from matrixinfer.devcluster.services import SYSTEM_NAMESPACE, ServiceProcess, start_service
from matrixinfer.devcluster.state import transition
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.codec import PODS_SLIM, PodView
from matrixinfer.kube.errors import ApiError
from matrixinfer.kube.resource import NAMESPACES, NODES, PODS, SERVICE_ACCOUNTS, Key, Resource
from matrixinfer.kube.store import Store

INFERS: Final = Resource.of(MODEL_INFER)
CONNECTIONS: Final = 50
PODS_PER_INFER: Final = 4
NODE_COUNT: Final = 20
STAGES: Final = Path(__file__).with_name("kwok-stages.yaml")
RATIO_LIMIT: Final = 1.5
WRITES_PER_POD_LIMIT: Final = 3.0
_WRITES: Final = frozenset({"create", "update", "patch", "delete"})
_USER: Final = f"system:serviceaccount:{SYSTEM_NAMESPACE}:infer-controller"


@dataclass
class Result:
    """What was measured; `failures` are the budgets that did not hold."""

    infers: int
    ours_seconds: float = 0.0
    bare_seconds: list[float] = field(default_factory=list)
    writes: Counter[str] = field(default_factory=Counter)
    quiet_seconds: float = 0.0
    quiet_writes: Counter[str] = field(default_factory=Counter)
    rss_mib: dict[int, float] = field(default_factory=dict)
    cpu_seconds: float = 0.0

    @property
    def pods(self) -> int:
        return self.infers * PODS_PER_INFER

    @property
    def ratio(self) -> float:
        """Ours against the mean of the bare runs around it."""
        return self.ours_seconds * len(self.bare_seconds) / sum(self.bare_seconds)

    @property
    def writes_per_pod(self) -> float:
        return sum(self.writes.values()) / self.pods

    @property
    def failures(self) -> list[str]:
        checks = [
            (self.ratio <= RATIO_LIMIT, f"ratio {self.ratio:.2f} is above {RATIO_LIMIT}"),
            (
                self.writes_per_pod <= WRITES_PER_POD_LIMIT,
                f"{self.writes_per_pod:.2f} writes per pod are more than {WRITES_PER_POD_LIMIT:g}",
            ),
            (not self.quiet_writes, f"{sum(self.quiet_writes.values())} writes while nothing happened"),
        ]
        return [sentence for holds, sentence in checks if not holds]


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def model_infer(namespace: str, name: str, shape: str) -> dict[str, Any]:
    """A ModelInfer of four pods: four groups of one, or (`workers`) one group of an entry pod and three workers, which
    also has a headless Service and so Endpoints that the control plane keeps."""
    container = {
        "name": "engine",
        "image": "example/engine:1",
        "ports": [{"containerPort": 8000}],
        "env": [{"name": f"SETTING_{number}", "value": "some value"} for number in range(20)],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}},
    }
    template = {"spec": {"automountServiceAccountToken": False, "containers": [container]}}
    role: dict[str, Any] = {"name": "server", "replicas": 1, "entryTemplate": template}
    replicas = PODS_PER_INFER
    if shape == "workers":
        role |= {"workerReplicas": PODS_PER_INFER - 1, "workerTemplate": template}
        replicas = 1
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "template": {"roles": [role]}},
    }


def bare_copy(pod: dict[str, Any], namespace: str) -> dict[str, Any]:
    """Return the pod as somebody would create it by hand: same labels and spec, no owner, no scheduling result."""
    meta, spec = pod["metadata"], dict(pod["spec"])
    for assigned in ("nodeName", "serviceAccount", "serviceAccountName", "tolerations", "priority"):
        spec.pop(assigned, None)
    # Not ours any more: the controller, were it running, would not look at it.
    labels = {key: value for key, value in meta.get("labels", {}).items() if key != names.INFER_NAME}
    return {
        "metadata": {
            "name": meta["name"],
            "namespace": namespace,
            "labels": {**labels, "bare/name": "x"},
            "annotations": meta.get("annotations", {}),
        },
        "spec": spec,
    }


async def over_connections(items: Iterable[Any], send: Callable[[Any], Any]) -> None:
    """Send all items with 50 requests under way."""
    queue = iter(list(items))

    async def worker() -> None:
        for item in queue:
            await send(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(worker())


async def until(claim: Callable[[], bool], what: str, seconds: float = 180) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not claim():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise SystemExit(f"gave up waiting for {what} after {seconds:g} s") from None


def audited(log: Path, offset: int) -> tuple[Counter[str], int]:
    """Count the controller's writes in the audit log from `offset` on, without leases; returns the new offset."""
    writes: Counter[str] = Counter()
    with log.open("rb") as file:
        file.seek(offset)
        raw = file.read()
    whole = raw[: raw.rfind(b"\n") + 1]
    for line in whole.splitlines():
        event = orjson.loads(line)
        target = event.get("objectRef") or {}
        if event["user"]["username"] != _USER or event["verb"] not in _WRITES or target.get("resource") == "leases":
            continue
        subresource = f"/{target['subresource']}" if target.get("subresource") else ""
        writes[f"{event['verb']} {target.get('resource')}{subresource}"] += 1
    return writes, offset + len(whole)


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    """Processor time that the process has used so far."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """One run on one control plane."""

    def __init__(self, plane: ControlPlane, client: Client, pods: Store[PodView], infers: int, shape: str) -> None:
        self.plane = plane
        self.client = client
        self.pods = pods
        self.shape = shape
        self.result = Result(infers)

    async def namespace(self, name: str) -> str:
        await self.client.create(NAMESPACES, {"metadata": {"name": name}})
        async with asyncio.timeout(30):
            while True:
                try:
                    await self.client.get(SERVICE_ACCOUNTS, Key(name, "default"))
                except ApiError:
                    await asyncio.sleep(0.05)
                else:
                    return name

    def ready(self, namespace: str) -> int:
        return sum(1 for pod in self.pods.values() if pod.ready and pod.namespace == namespace)

    async def create_pods(self, manifests: Sequence[dict[str, Any]]) -> None:
        await over_connections(manifests, lambda manifest: self.client.create(PODS, manifest))

    async def ours(self, namespace: str, count: int) -> float:
        await self.namespace(namespace)
        began = time.monotonic()
        manifests = [model_infer(namespace, f"infer-{number}", self.shape) for number in range(count)]
        await over_connections(manifests, lambda manifest: self.client.create(INFERS, manifest))
        await until(lambda: self.ready(namespace) == count * PODS_PER_INFER, "our pods")
        return time.monotonic() - began

    async def bare(self, namespace: str, pods: Sequence[dict[str, Any]]) -> float:
        await self.namespace(namespace)
        manifests = [bare_copy(pod, namespace) for pod in pods]
        began = time.monotonic()
        await self.create_pods(manifests)
        await until(lambda: self.ready(namespace) == len(manifests), "the bare pods")
        return time.monotonic() - began

    async def drop(self, namespace: str) -> None:
        """Delete a namespace's content and wait until it is gone, so that it does not slow what comes next."""
        listing = await self.client.list(INFERS, namespace)
        for item in listing.items:
            await self.client.delete(INFERS, Key(namespace, item["metadata"]["name"]))
        keys = [pod.key for pod in self.pods.values() if pod.namespace == namespace]
        await over_connections(keys, self._delete_pod)
        await until(lambda: not any(pod.namespace == namespace for pod in self.pods.values()), "the end of old pods")

    async def _delete_pod(self, key: Key) -> None:
        try:
            await self.client.delete(PODS, key, grace_seconds=0)
        except ApiError as exc:
            if exc.status != 404:
                raise

    async def quiet(self, offset: int, seconds: float) -> int:
        """Wait until the controller writes nothing more, then watch it write nothing; returns the audit offset."""
        settled = 0
        while settled < 3:
            await asyncio.sleep(1)
            writes, offset = audited(self.plane.audit_log, offset)
            self.result.writes += writes
            settled = 0 if writes else settled + 1
        await asyncio.sleep(seconds)
        self.result.quiet_seconds = seconds
        self.result.quiet_writes, offset = audited(self.plane.audit_log, offset)
        return offset

    async def fill_cache(self, service: ServiceProcess, total: int) -> None:
        """Bring the pods in the controller's cache up to `total`, with pods of a ModelInfer that does not exist."""
        have = self.result.pods
        namespace = await self.namespace("filler")
        sample = (await self.client.list(PODS, "ours", page_size=1)).items[0]
        labels = {**sample["metadata"]["labels"], names.INFER_NAME: "nobody"}
        template = bare_copy(sample, namespace)
        template["spec"] = {**template["spec"], "schedulerName": "nobody"}
        manifests = [
            {**template, "metadata": {**template["metadata"], "name": f"filler-{number}", "labels": labels}}
            for number in range(total - have)
        ]
        await self.create_pods(manifests)
        await until(lambda: len(self.pods) >= total, "the filling pods")
        await asyncio.sleep(3)
        self.result.rss_mib[total] = rss_mib(service.pid)


@asynccontextmanager
async def watched(client: Client) -> AsyncIterator[Store[PodView]]:
    """All pods, as an onlooker sees them."""
    cache = Cache(client)
    pods = cache.watch(PODS, project=PODS_SLIM)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(cache.run())
        await cache.wait_synced()
        yield pods
        task.cancel()


async def add_nodes(plane: ControlPlane, client: Client) -> None:
    """Start kwok and give it nodes that take any number of pods."""
    kwok = build_extra("kwok", say)
    with transition(plane.place) as lock:
        argv = [str(kwok), f"--kubeconfig={plane.kubeconfig}", "--manage-all-nodes", f"--config={STAGES}"]
        plane.ledger.start("kwok", argv, lock=lock)
    capacity = {"cpu": "1000", "memory": "4Ti", "pods": "5000"}
    condition = {"type": "Ready", "status": "True", "reason": "Simulated", "message": "kwok plays this node"}
    for number in range(NODE_COUNT):
        name = f"kwok-{number}"
        await client.create(
            NODES,
            {
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "status": {"capacity": capacity, "allocatable": capacity, "conditions": [condition]},
            },
        )
        # Without the node lifecycle controller nobody else takes away the taint that a new node gets.
        await client.merge_patch(NODES, Key("", name), {"spec": {"taints": None}})


async def run(plane: ControlPlane, infers: int, shape: str, quiet_seconds: float, cached: int) -> Result:
    async with (
        await Client.connect(plane.kubeconfig, user_agent="bench", pool_size=CONNECTIONS) as client,
        watched(client) as pods,
    ):
        await add_nodes(plane, client)
        service = await asyncio.to_thread(start_service, plane, "infer-controller")
        bench = Bench(plane, client, pods, infers, shape)
        say("warming up: 25 ModelInfers")
        await bench.ours("warm", 25)
        sample = (await client.list(PODS, "warm")).items
        await bench.drop("warm")
        say(f"bare loop: {bench.result.pods} pods over {CONNECTIONS} connections")
        copies = [
            {**pod, "metadata": {**pod["metadata"], "name": f"bare-{number}"}}
            for number, pod in enumerate(sample * (bench.result.pods // len(sample) + 1))
        ][: bench.result.pods]
        bench.result.bare_seconds.append(await bench.bare("bare-1", copies))
        await bench.drop("bare-1")
        await asyncio.sleep(3)
        _, offset = audited(plane.audit_log, 0)
        say(f"ours: {infers} ModelInfers of {PODS_PER_INFER} pods")
        used = cpu_seconds(service.pid)
        bench.result.ours_seconds = await bench.ours("ours", infers)
        bench.result.cpu_seconds = cpu_seconds(service.pid) - used
        say(f"quiet: {quiet_seconds:g} s in which nothing may be written")
        await bench.quiet(offset, quiet_seconds)
        bench.result.rss_mib[bench.result.pods] = rss_mib(service.pid)
        say("bare loop again")
        bench.result.bare_seconds.append(await bench.bare("bare-2", copies))
        await bench.drop("bare-2")
        if cached > bench.result.pods:
            say(f"memory: {cached} pods in the cache")
            await bench.fill_cache(service, cached)
        await asyncio.to_thread(service.stop)
        return bench.result


def report(result: Result) -> None:
    bare = " and ".join(f"{seconds:.1f} s" for seconds in result.bare_seconds)
    say("")
    say(f"pods Ready             {result.pods} in {result.ours_seconds:.1f} s; bare loop {bare}")
    say(f"ratio                  {result.ratio:.2f}  (limit {RATIO_LIMIT})")
    say(f"API writes per pod     {result.writes_per_pod:.2f}  (limit {WRITES_PER_POD_LIMIT:g})")
    for what, count in sorted(result.writes.items()):
        say(f"  {count:>6}  {what}")
    say(f"writes in the {result.quiet_seconds:g} s after {sum(result.quiet_writes.values()):>4}  (limit 0)")
    say(f"processor time         {result.cpu_seconds:.1f} s of the controller until all were Ready")
    for count, mib in sorted(result.rss_mib.items()):
        say(f"memory                 {mib:.0f} MiB with {count} pods cached")


def main() -> None:
    """Run the bench; exit code 1 when a budget does not hold."""
    parser = argparse.ArgumentParser(description="The control-plane bench: ratios in one run.")
    parser.add_argument("--infers", type=int, default=250, help="ModelInfers, each of 4 pods")
    parser.add_argument(
        "--shape",
        choices=("groups", "workers"),
        default="groups",
        help="four groups of one pod (default), or one group of four pods with a headless Service",
    )
    parser.add_argument("--quiet-seconds", type=float, default=60.0, help="how long nothing may be written afterwards")
    parser.add_argument("--cached", type=int, default=10_000, help="pods in the cache for the second memory figure")
    parser.add_argument("--name", default=f"bench-{os.getpid():x}", help="name of the control plane")
    arguments = parser.parse_args()
    # A terminated bench takes its control plane down like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    say("starting a control plane")
    plane = ControlPlane.up(arguments.name, options=Options(scheduler_qps=2000))
    try:
        plane.apply(repository() / "crds")
        plane.run_kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        result = uvloop.run(run(plane, arguments.infers, arguments.shape, arguments.quiet_seconds, arguments.cached))
    finally:
        ControlPlane(instance(arguments.name)).down()
    report(result)
    for failure in result.failures:
        say(f"FAILED: {failure}")
    sys.exit(1 if result.failures else 0)


if __name__ == "__main__":
    main()
