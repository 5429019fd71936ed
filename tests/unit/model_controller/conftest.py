"""Models, and what the caches show of what was made from them."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from matrixinfer.api.v1alpha1.defaults import with_defaults
from matrixinfer.api.v1alpha1.modelversion import ModelVersion
from matrixinfer.engines.engine import EngineName
from matrixinfer.kube.plan import Apply, Delete, Plan, Scale
from matrixinfer.kube.resource import key_of
from matrixinfer.model_controller.observe import Seen
from matrixinfer.model_controller.plan import plan
from matrixinfer.model_controller.render.environment import RenderEnvironment
from matrixinfer.model_controller.resources import (
    CHILDREN,
    INFERS,
    MODELS,
    ROLE_BINDINGS,
    SERVICE_ACCOUNTS,
    VERSIONS,
)

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
ENVIRONMENT = RenderEnvironment(
    engine_images={EngineName.LLAMACPP: "matrixinfer/engine-llamacpp:dev", EngineName.VLLM: "example/vllm:1"}
)
AVAILABLE = {"type": "Available", "status": "True", "reason": "AllGroupsReady", "message": "all groups are ready"}


class World:
    """One Model and its objects; `step` plans and carries out, as a flawless API server would."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.model: dict[str, Any] = with_defaults(model)
        self.model["metadata"] |= {"uid": "uid-model", "namespace": "llm", "generation": 1}
        self.versions: dict[str, dict[str, Any]] = {}
        self.children: dict[Any, dict[str, Any]] = {}
        self.access: dict[Any, Any] = {}
        self.owners = ((self.model["metadata"]["name"], "uid-model"),)
        self.now = NOW
        self.environment = ENVIRONMENT

    @property
    def seen(self) -> Seen:
        return deepcopy(
            Seen(
                model=self.model,
                owners=self.owners,
                versions={name: ModelVersion.model_validate(found) for name, found in self.versions.items()},
                children=self.children,
                access=self.access,
            )
        )

    def plan(self) -> Plan:
        return plan(self.seen, self.environment, self.now)

    def step(self) -> Plan:
        made = self.plan()
        for step in made.steps:
            self._do(step)
        for write in made.status:
            if write.resource == MODELS:
                self.model["status"] = dict(write.desired)
            else:
                status = self.versions[write.key.name].setdefault("status", {})
                merged = {c["type"]: c for c in [*status.get("conditions", ()), *write.desired["conditions"]]}
                status.update({**write.desired, "conditions": list(merged.values())})
        return made

    def settle(self) -> None:
        for _ in range(6):
            if self.step().is_empty:
                return
        raise AssertionError(f"still planning: {self.plan().why}")

    def _do(self, step: Any) -> None:
        match step:
            case Apply(resource, manifest) if resource == VERSIONS:
                self.versions[key_of(manifest).name] = self._stored(manifest, {})
            case Apply(resource, manifest) if resource in (SERVICE_ACCOUNTS, ROLE_BINDINGS):
                self.access[resource] = self._stored(manifest, {})
            case Apply(resource, manifest):
                place = (resource, key_of(manifest).name)
                self.children[place] = self._stored(manifest, self.children.get(place, {}))
            case Delete(resource, key) if resource == VERSIONS:
                del self.versions[key.name]
            case Delete(resource, key):
                del self.children[(resource, key.name)]
            case Scale(resource, key, replicas):
                self.children[(resource, key.name)]["spec"]["replicas"] = replicas

    def _stored(self, manifest: Any, before: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = deepcopy(dict(manifest))
        generation = before.get("metadata", {}).get("generation", 0) + 1
        made["metadata"] |= {"uid": f"uid-{made['metadata']['name']}", "generation": generation}
        made["metadata"].setdefault("creationTimestamp", "2026-01-31T12:00:00Z")
        if made["kind"] == "ModelInfer":
            made["spec"]["replicas"] = before.get("spec", {}).get("replicas", 1)
            made["status"] = before.get("status", {})
        return made

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        change(self.model["spec"])
        self.model["metadata"]["generation"] += 1

    def infer(self, name: str) -> dict[str, Any]:
        return self.children[(INFERS, name)]

    def serve(self, name: str, *, updated: int | None = None, available: bool = True) -> None:
        """The infer-controller made the pods."""
        infer = self.infer(name)
        replicas = infer["spec"]["replicas"]
        infer["status"] = {
            "observedGeneration": infer["metadata"]["generation"],
            "replicas": replicas,
            "readyReplicas": replicas,
            "updatedReplicas": replicas if updated is None else updated,
            "conditions": [
                {**AVAILABLE, "status": str(available), "lastTransitionTime": "2026-01-31T12:00:00Z"},
            ],
        }

    def condition(self, type_: str) -> dict[str, Any]:
        return next(found for found in self.model["status"]["conditions"] if found["type"] == type_)

    def names(self) -> set[str]:
        return {f"{resource.kind}/{name}" for resource, name in self.children if resource in CHILDREN}


def quickstart() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "tests/data/quickstart.yaml").read_text())


def fixture(name: str) -> dict[str, Any]:
    made = yaml.safe_load((ROOT / f"tests/data/manifests/{name}.yaml").read_text())
    return deepcopy(made)


@pytest.fixture
def world() -> Callable[[str], World]:
    """`world("quickstart")`, or a world of one of the compatibility fixtures."""
    return lambda name: World(quickstart() if name == "quickstart" else fixture(name))
