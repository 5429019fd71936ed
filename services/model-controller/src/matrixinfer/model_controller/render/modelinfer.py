"""The ModelInfer of a backend: the pods that serve one version.

All engine knowledge comes from matrixinfer.engines; this module lays containers, probes and volumes around it.
`spec.replicas` is never rendered: whoever scales owns it, and the plan corrects it through the scale subresource.

The trap: whatever is rendered here is part of the pods, and a difference replaces them all. So nothing that may change
while the content stays the same (replica bounds, weights, other backends) may enter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from matrixinfer.api import names
from matrixinfer.api.names import backend_object_name
from matrixinfer.api.v1alpha1.model import Model, ModelBackend, ModelWorker, WorkerType
from matrixinfer.api.v1alpha1.modelversion import VersionWorker
from matrixinfer.engines.catalog import engine_for
from matrixinfer.engines.engine import Command, Engine, Launch, Phase
from matrixinfer.engines.errors import ConfigRefused, EngineError
from matrixinfer.model_controller.render.children import labels_of, owned
from matrixinfer.model_controller.render.download import ACCOUNT, GROUP_ID, Download, download
from matrixinfer.model_controller.render.environment import RenderEnvironment
from matrixinfer.model_controller.render.errors import RenderError
from matrixinfer.model_controller.resources import INFERS
from matrixinfer.model_controller.versions import Served

__all__ = ["SINGLE_ROLE", "EnginePods", "modelinfer"]

SINGLE_ROLE: Final = "leader"
"""Role of a backend that is not disaggregated; other tools look for it."""

# A path inside the container, where engines of several processes share tensors.
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108
_PROBE_SECONDS: Final = 2
_SETTLE_SECONDS: Final = 5
"""How long a pod that must go keeps serving, so that the gateway has turned away before the engine stops."""


@dataclass(frozen=True, slots=True)
class EnginePods:
    """A rendered ModelInfer, and config keys of the user that lost against flags that are ours."""

    manifest: dict[str, Any]
    ignored: tuple[str, ...]


def modelinfer(model: Model, backend: ModelBackend, served: Served, environment: RenderEnvironment) -> EnginePods:
    """Return the ModelInfer of a backend.

    Raises:
        RenderError: the engine cannot be started as it is asked for.
    """
    files = download(served.name, served.spec, model.metadata.namespace, backend.cache_uri, environment)
    ignored: list[str] = []
    roles: list[dict[str, Any]] = []
    for worker in served.spec.workers:
        part = _Part(model, backend, served, worker, _deployed(backend, worker, served), files, environment)
        roles.append(part.role())
        ignored += part.launch(entry=True).ignored
    spec: dict[str, Any] = {
        "template": {"restartGracePeriodSeconds": environment.restart_grace_seconds, "roles": roles},
    }
    if backend.scheduler_name:
        spec["schedulerName"] = backend.scheduler_name
    name = backend_object_name(model.metadata.name, backend.name)
    return EnginePods(owned(model, INFERS, name, backend.name, {"spec": spec}), tuple(sorted(set(ignored))))


def _deployed(backend: ModelBackend, worker: VersionWorker, served: Served) -> ModelWorker:
    """The worker of the Model that says how many pods a part of the version gets, and where."""
    for found in backend.workers:
        if found.type is worker.type:
            return found
    raise RenderError(
        "VersionMismatch",
        f"the ModelVersion {served.name!r} has a {worker.type} worker, which backend {backend.name!r} no longer has; "
        "pin another version, or remove versionName",
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """One worker of a version: a role of the ModelInfer."""

    model: Model
    backend: ModelBackend
    served: Served
    worker: VersionWorker
    deployed: ModelWorker
    files: Download
    environment: RenderEnvironment

    def role(self) -> dict[str, Any]:
        """The role: one entry pod, and workers when the engine spans pods."""
        name = SINGLE_ROLE if self.worker.type is WorkerType.SERVER else self.worker.type.value
        made: dict[str, Any] = {
            "name": name,
            "replicas": self.deployed.replicas,
            "entryTemplate": self._template(entry=True),
            "workerReplicas": self.worker.pods - 1,
        }
        return made if self.worker.pods == 1 else {**made, "workerTemplate": self._template(entry=False)}

    @property
    def engine(self) -> Engine:
        """The engine of the version."""
        return engine_for(self.served.spec.type)

    def launch(self, *, entry: bool) -> Command:
        """How the engine is started in this pod."""
        try:
            return self.engine.command(
                Launch(
                    model_path=self.files.model_path,
                    served_name=self.served.spec.served_name,
                    port=self.engine.port_of(self.worker.config),
                    config=self._config(),
                    phase=Phase(self.worker.type.value),
                    nodes=self.worker.pods,
                    entry=entry,
                    lora=bool(self.files.adapter_paths),
                )
            )
        except ConfigRefused as fault:
            place = f"config.{fault.key}" if fault.key else "config"
            message = f"{place} of the {self.worker.type} worker of backend {self.backend.name!r}: {fault}"
            raise RenderError("ConfigRefused", message) from fault
        except EngineError as fault:
            raise RenderError("EngineUnsupported", f"backend {self.backend.name!r}: {fault}") from fault

    def _config(self) -> dict[str, Any]:
        config: Any = self.worker.config or {}
        if not isinstance(config, Mapping):
            raise RenderError(
                "ConfigRefused",
                f"config of the {self.worker.type} worker of backend {self.backend.name!r} is not an object",
            )
        if not self.files.adapter_paths:
            return dict(config)
        return {**config, "lora-modules": [f"{name}={path}" for name, path in self.files.adapter_paths]}

    def _template(self, *, entry: bool) -> dict[str, Any]:
        labels = {
            **labels_of(self.model, self.backend.name),
            names.MODEL_REVISION: self.served.name.rsplit("-", 1)[-1],
        }
        return {"metadata": {"labels": labels}, "spec": self._pod(self.launch(entry=entry))}

    def _pod(self, command: Command) -> dict[str, Any]:
        pod: dict[str, Any] = {
            "serviceAccountName": ACCOUNT,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": self.environment.termination_grace_seconds,
            "securityContext": {
                "fsGroup": GROUP_ID,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "initContainers": list(self.files.init_containers),
            "containers": [self._engine_container(command)],
            "volumes": [*self.files.volumes, {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
        }
        optional = {
            "nodeSelector": self.deployed.node_selector,
            "affinity": self.deployed.affinity,
            "tolerations": list(self.deployed.tolerations),
            "runtimeClassName": self.deployed.runtime_class_name,
            "schedulerName": self.backend.scheduler_name,
        }
        return {**pod, **{name: value for name, value in optional.items() if value}}

    def _engine_container(self, command: Command) -> dict[str, Any]:
        container: dict[str, Any] = {
            "name": "engine",
            "image": self.worker.image,
            "command": list(command.argv),
            "securityContext": {"allowPrivilegeEscalation": False},
            "volumeMounts": [*self.files.engine_mounts, {"name": "shared-memory", "mountPath": _SHARED_MEMORY}],
        }
        env = [*command.env, *self.served.spec.env]
        if env:
            container["env"] = list({str(variable["name"]): variable for variable in env}.values())
        if self.served.spec.env_from:
            container["envFrom"] = list(self.served.spec.env_from)
        if self.deployed.resources:
            container["resources"] = self.deployed.resources
        if command.ports:
            container |= self._serving(command)
        return container

    def _serving(self, command: Command) -> dict[str, Any]:
        """Ports, probes and a late stop of the pod that answers requests.

        The start may take as long as the engine's weights need; only then do the other two probes count.
        """
        probe = {"httpGet": {"path": self.engine.health_path, "port": command.ports[0].name}, "timeoutSeconds": 5}
        return {
            "ports": [{"name": port.name, "containerPort": port.number, "protocol": "TCP"} for port in command.ports],
            "startupProbe": {
                **probe,
                "periodSeconds": _PROBE_SECONDS,
                "failureThreshold": -(-self.engine.startup_seconds // _PROBE_SECONDS),
            },
            "readinessProbe": {**probe, "periodSeconds": _PROBE_SECONDS, "failureThreshold": 3},
            "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 6},
            "lifecycle": {"preStop": {"sleep": {"seconds": _SETTLE_SECONDS}}},
        }
