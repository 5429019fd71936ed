"""A Model that lives on the node, and what a person with kubectl asks about it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from matrixinfer.devcluster import Node
from matrixinfer.devcluster.suite import read

ROOT = Path(__file__).parents[2]
NAMESPACE = "models"
KINDS = "models,modelversions,modelinfers,modelservers,modelroutes,autoscalingpolicies,autoscalingpolicybindings"


class Life:
    """One Model and what a person with kubectl can ask about it."""

    def __init__(self, node: Node, gateway: str, name: str) -> None:
        self.node = node
        self.gateway = gateway
        self.name = name

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self.node.run_kubectl("-n", NAMESPACE, *arguments, stdin=stdin)

    def get(self, *what: str) -> dict[str, Any]:
        return read(self.node, *what, "-n", NAMESPACE)

    def condition(self, kind: str, name: str, condition: str) -> dict[str, Any]:
        conditions = (self.get(kind, name).get("status") or {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == condition), {})

    def pods(self) -> list[dict[str, Any]]:
        """Pods of the Model that are not on their way out."""
        items = self.get("pods", "-l", f"registry.matrixinfer.ai/model-name={self.name}")["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def ready_pods(self) -> list[dict[str, Any]]:
        return [p for p in self.pods() if {"type": "Ready", "status": "True"}.items() <= ready_condition(p).items()]

    def wait(self, what: str, holds: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {seconds:.0f} s\n{self.story()}")
            time.sleep(0.3)

    def story(self) -> str:
        """What a person would look at to see why: the columns, the sentences of all conditions, the latest events."""
        sentences = [
            f"{item['kind']}/{item['metadata']['name']} {each['type']}={each['status']}: {each['message']}"
            for item in self.get(KINDS)["items"]
            for each in (item.get("status") or {}).get("conditions", [])
        ]
        events = self.kubectl("get", "events", "--sort-by=.lastTimestamp").splitlines()[-40:]
        return "\n".join([self.kubectl("get", f"{KINDS},pods"), *sentences, *events])

    def wait_ready(self, count: int) -> None:
        self.wait(f"{count} ready pods", lambda: len(self.ready_pods()) == count == len(self.pods()))

    def infer(self) -> str:
        return f"modelinfer/{self.name}-sim"


def ready_condition(pod: dict[str, Any]) -> dict[str, Any]:
    found = [c for c in pod.get("status", {}).get("conditions", []) if c["type"] == "Ready"]
    return found[0] if found else {}


def manifest(name: str) -> dict[str, Any]:
    model: dict[str, Any] = yaml.safe_load((ROOT / "examples/quickstart/model-sim.yaml").read_text())
    model["metadata"]["name"] = name
    return model
