"""A small controller as its own process: a ConfigMap labelled `app=replicas` gets `data.replicas` pods.

Run by test_kube_election.py: `python kube_replicas.py KUBECONFIG NAMESPACE IDENTITY`. Exit code 3 means that the lease
was lost. Each pod carries the identity of the process that made it.
"""

import asyncio
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.codec import PODS_SLIM, PodView
from matrixinfer.kube.controller import Controller
from matrixinfer.kube.election import ElectionSettings
from matrixinfer.kube.errors import LeaseLost
from matrixinfer.kube.manager import Manager
from matrixinfer.kube.plan import Create, Plan, Step
from matrixinfer.kube.resource import CONFIG_MAPS, PODS, Key, Manifest, owner_reference
from matrixinfer.kube.sources import owned_by
from matrixinfer.kube.store import Store

LEASE = "replicas"


class Replicas:
    """Creates what is missing, by ordinal."""

    def __init__(self, configs: Store[Manifest], pods: Store[PodView], identity: str) -> None:
        self.configs = configs
        self.pods = pods
        self.identity = identity

    def observe(self, key: Key) -> tuple[Any, set[str]] | None:
        """Return the ConfigMap and the names of its pods."""
        config: Any = self.configs.get(key)
        if config is None:
            return None
        return config, {pod.name for pod in self.pods.by_index("owner", config["metadata"]["uid"])}

    def plan(self, seen: tuple[Any, set[str]], now: datetime) -> Plan:
        """Return one wave with the missing pods."""
        config, present = seen
        wanted = [f"{config['metadata']['name']}-{i}" for i in range(int(config["data"]["replicas"]))]
        steps: list[Step] = [Create(PODS, self.pod(config, name)) for name in wanted if name not in present]
        return Plan(why="pods are missing", waves=[steps] if steps else [])

    def pod(self, config: Any, name: str) -> Manifest:
        """Render one pod, which no scheduler will touch."""
        meta = config["metadata"]
        return {
            "metadata": {
                "name": name,
                "namespace": meta["namespace"],
                "annotations": {"made-by": self.identity},
                "ownerReferences": [owner_reference(CONFIG_MAPS, meta["name"], meta["uid"])],
            },
            "spec": {"schedulerName": "nobody", "containers": [{"name": "c", "image": "i"}]},
        }


def build(client: Client, namespace: str, identity: str, *, elect: bool = True) -> tuple[Manager, Store[PodView]]:
    """Wire the process together."""
    cache = Cache(client)
    configs = cache.watch(CONFIG_MAPS, namespace=namespace, label_selector="app=replicas")
    pods = cache.watch(PODS, namespace=namespace, project=PODS_SLIM, indexes={"owner": lambda pod: pod.owner_uids})
    controller = Controller(
        "replicas",
        configs,
        Replicas(configs, pods, identity),
        sources=[owned_by(pods, "ConfigMap")],
        field_manager="replicas",
        workers=50,
    )
    election = ElectionSettings(
        name=LEASE,
        namespace=namespace,
        identity=identity,
        lease_seconds=5.0,
        renew_deadline_seconds=3.5,
        retry_seconds=0.25,
        request_seconds=1.4,
    )
    return Manager(client, cache, [controller], component="replicas", election=election if elect else None), pods


async def main(kubeconfig: str, namespace: str, identity: str) -> int:
    """Run until SIGTERM; return the exit code."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with await Client.connect(Path(kubeconfig), user_agent=identity) as client:
        sys.stdout.write(f"{identity} runs\n")
        sys.stdout.flush()
        try:
            await build(client, namespace, identity)[0].run(stopping)
        except LeaseLost:
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:4])))
