"""What the status of a Model and of its ModelVersions says.

Pure. Everything comes from the pass's one look, so a status never claims what nobody saw. The trap: a sentence must be
the same as long as the facts are, or a steady object would be written for ever.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from matrixinfer.api.conditions import Condition, find_condition, is_true, set_condition
from matrixinfer.api.names import backend_object_name
from matrixinfer.api.v1alpha1.model import Model
from matrixinfer.api.v1alpha1.modelinfer import ModelInferStatus
from matrixinfer.api.v1alpha1.modelversion import ModelVersion
from matrixinfer.kube.resource import Manifest
from matrixinfer.model_controller.desired import Desired
from matrixinfer.model_controller.drift import has_drifted
from matrixinfer.model_controller.observe import Seen
from matrixinfer.model_controller.resources import INFERS
from matrixinfer.model_controller.versions import Served

__all__ = [
    "BackendView",
    "Claim",
    "backend_views",
    "comparable",
    "download_fault",
    "model_status",
    "version_current",
    "version_status",
]

_DOWNLOADING: Final = "Downloading"
"""Reason of the downloader's `Available=False` that is no failure."""
_OUR_CONDITIONS: Final = ("Active", "Failed")


@dataclass(frozen=True, slots=True)
class Claim:
    """One condition without its bookkeeping."""

    type: str
    status: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class BackendView:
    """What is known of one backend: its ModelInfer as it is, and what it should serve."""

    name: str
    infer_name: str
    exists: bool
    is_current: bool
    """It holds what we want now."""
    generation: int
    status: ModelInferStatus
    served: Served | None
    version: ModelVersion | None
    ignored: tuple[str, ...] = ()

    @property
    def is_taken_up(self) -> bool:
        """True when the infer-controller acts on what we want now."""
        return self.exists and self.is_current and self.status.observed_generation >= self.generation

    @property
    def is_available(self) -> bool:
        """True when the ModelInfer says that it can take requests."""
        return self.exists and is_true(self.status.conditions, "Available")

    @property
    def is_ready(self) -> bool:
        """True when what we want now can take requests."""
        return self.is_available and self.is_taken_up

    @property
    def is_rolled_out(self) -> bool:
        """True when no pod of an older version is left."""
        return self.is_taken_up and self.status.updated_replicas >= self.status.replicas

    @property
    def serves_wanted(self) -> bool:
        """True when pods of the wanted version take requests, or would if anybody asked."""
        return self.is_ready and (self.status.updated_replicas > 0 or self.status.replicas == 0)

    @property
    def message(self) -> str:
        """What it waits for; empty when it waits for nothing."""
        if not self.exists:
            return f"ModelInfer {self.infer_name} is being made"
        if not self.is_current:
            return f"ModelInfer {self.infer_name} is being updated"
        if not self.is_taken_up:
            return self._download_message() or f"no pods of ModelInfer {self.infer_name} are reported yet"
        if self.is_ready and self.is_rolled_out:
            return ""
        if self.is_ready:
            return f"{self.status.updated_replicas} of {self.status.replicas} groups of {self.infer_name} are updated"
        return self._download_message() or self._pods_message()

    def _download_message(self) -> str:
        if self.version is None or is_true(self.version.status.conditions, "Available"):
            return ""
        name = self.version.metadata.name
        fault = download_fault(self.version)
        if fault is not None:
            return f"ModelVersion {name}: {fault.message}"
        # How far it is changes all the time, and is told by the version itself.
        return f"ModelVersion {name} is being fetched" if self.version.status.progress is not None else ""

    def _pods_message(self) -> str:
        for type_ in ("RecoveryBackoff", "Progressing", "Available"):
            found = find_condition(self.status.conditions, type_)
            if found is not None and found.message and (found.status == "True") == (type_ != "Available"):
                return f"{self.infer_name}: {found.message}"
        return f"{self.status.ready_replicas} of {self.status.replicas} groups of {self.infer_name} are ready"


def backend_views(seen: Seen, model: Model, wanted: Desired | None) -> tuple[BackendView, ...]:
    """Return one view for each backend; without `wanted` (it was refused), of what is there."""
    infers = {child.name: child for child in wanted.of(INFERS)} if wanted is not None else {}
    views: list[BackendView] = []
    for index, backend in enumerate(model.spec.backends):
        name = backend_object_name(model.metadata.name, backend.name)
        live = seen.children.get((INFERS, name))
        status = _infer_status(live)
        served = wanted.served[index] if wanted is not None else None
        views.append(
            BackendView(
                name=backend.name,
                infer_name=name,
                exists=live is not None,
                is_current=name not in infers or not has_drifted(live, infers[name].manifest),
                generation=_generation(live),
                status=status,
                served=served,
                version=seen.versions.get(served.name) if served is not None else None,
                ignored=wanted.ignored[index] if wanted is not None else (),
            )
        )
    return tuple(views)


def download_fault(version: ModelVersion) -> Condition | None:
    """Return the condition in which the downloader says that it failed; none while it works or has not begun."""
    for type_ in ("Resolved", "Available"):
        found = find_condition(version.status.conditions, type_)
        if found is not None and found.status == "False" and found.reason != _DOWNLOADING:
            return found
    return None


def model_status(
    seen: Seen,
    model: Model,
    views: Sequence[BackendView],
    active: Iterable[str],
    failure: Claim | None,
    *,
    complete: bool,
    now: datetime,
) -> dict[str, Any]:
    """Return the whole status. `complete` says that every object exists; `failure` what went wrong, if anything."""
    before = _conditions(seen.model)
    served_before = is_true(before, "Active")
    claims = [
        _active(views, failure, served_before=served_before),
        _progressing(views, failure, complete=complete),
        failure or _NO_FAILURE,
    ]
    initialized = complete or is_true(before, "Initialized")
    claims.append(_INITIALIZED if initialized else _NOT_INITIALIZED)
    made: list[Condition] = [found for claim in claims if (found := find_condition(before, claim.type)) is not None]
    for claim in claims:
        made = set_condition(
            made, claim.type, claim.status, claim.reason, claim.message, model.metadata.generation, now
        )
    return {
        "observedGeneration": model.metadata.generation,
        "replicas": sum(view.status.replicas for view in views),
        "readyReplicas": sum(view.status.ready_replicas for view in views),
        "activeVersions": ",".join(sorted(active)),
        "endpointName": model.served_name,
        "backendStatuses": [_backend_status(view, seen) for view in views],
        "conditions": [condition.to_manifest() for condition in sorted(made, key=lambda found: found.type)],
    }


_NO_FAILURE = Claim("Failed", False, "NoFailure", "Nothing failed")
_INITIALIZED = Claim("Initialized", True, "ModelCreating", "Model initialized")
_NOT_INITIALIZED = Claim("Initialized", False, "ModelCreating", "Objects of the Model are being made")


def _active(views: Sequence[BackendView], failure: Claim | None, *, served_before: bool) -> Claim:
    if failure is not None and served_before and all(view.is_available for view in views):
        return Claim("Active", True, "ModelAvailable", "Serves as before; the last change failed, see Failed")
    if failure is not None:
        return Claim("Active", False, "ModelFailed", failure.message)
    if all(view.is_ready for view in views):
        asleep = all(view.status.replicas == 0 for view in views)
        message = "Model is ready; it has no replica until the first request" if asleep else "Model is ready"
        return Claim("Active", True, "ModelAvailable", message)
    waiting = [view.message for view in views if not view.is_ready and view.message]
    return Claim("Active", False, "ModelUpdating", "; ".join(waiting) or "Model is updating, not ready yet")


def _progressing(views: Sequence[BackendView], failure: Claim | None, *, complete: bool) -> Claim:
    if failure is not None:
        return Claim("Progressing", False, failure.reason, "Nothing goes on until the failure is mended")
    waiting = [view.message for view in views if view.message]
    if waiting or not complete:
        return Claim("Progressing", True, "Deploying", "; ".join(waiting) or "Objects of the Model are being made")
    return Claim("Progressing", False, "Settled", "Everything is as the Model asks for")


def _backend_status(view: BackendView, seen: Seen) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": view.infer_name,
        "replicas": view.status.replicas,
        "readyReplicas": view.status.ready_replicas,
    }
    if view.served is not None:
        made["versionName"] = view.served.name
    else:
        before = _previous_backend(seen, view.infer_name)
        if before.get("versionName"):
            made["versionName"] = before["versionName"]
    ignored = f"config keys that have no effect: {', '.join(view.ignored)}" if view.ignored else ""
    message = "; ".join(text for text in (view.message, ignored) if text)
    return {**made, "message": message} if message else made


def _previous_backend(seen: Seen, name: str) -> Mapping[str, Any]:
    status: Any = seen.model.get("status") or {}
    return next((found for found in status.get("backendStatuses") or () if found.get("name") == name), {})


def version_status(
    version: ModelVersion, *, active: bool, infer_name: str | None, failure: Claim | None, now: datetime
) -> dict[str, Any]:
    """Return our part of the status of a ModelVersion; the rest belongs to the downloader."""
    claims = [
        Claim("Active", True, "Serving", f"Pods of {infer_name} serve it")
        if active
        else Claim("Active", False, "NotServing", "No pod serves it"),
        failure or _NO_FAILURE,
    ]
    ours = [condition for condition in version.status.conditions if condition.type in _OUR_CONDITIONS]
    for claim in claims:
        ours = set_condition(
            ours, claim.type, claim.status, claim.reason, claim.message, version.metadata.generation, now
        )
    made: dict[str, Any] = {
        "conditions": [condition.to_manifest() for condition in sorted(ours, key=lambda found: found.type)]
    }
    if infer_name is not None:
        made["modelInferName"] = infer_name
    return made


def version_current(version: ModelVersion) -> dict[str, Any]:
    """Return our part of the status as it is now."""
    status = version.status
    ours = [condition for condition in status.conditions if condition.type in _OUR_CONDITIONS]
    made: dict[str, Any] = {"modelInferName": status.model_infer_name} if status.model_infer_name is not None else {}
    if ours:
        made["conditions"] = [condition.to_manifest() for condition in sorted(ours, key=lambda found: found.type)]
    return made


def comparable(status: Any) -> dict[str, Any]:
    """Return the status of a Model in the order in which we write it."""
    made = dict(status or {})
    if "conditions" in made:
        made["conditions"] = sorted(made["conditions"], key=lambda found: str(found.get("type")))
    return made


def _infer_status(live: Manifest | None) -> ModelInferStatus:
    status: Any = (live or {}).get("status") or {}
    try:
        return ModelInferStatus.model_validate(status)
    except ValidationError:
        # A status of a later version than ours: claim nothing.
        return ModelInferStatus()


def _conditions(manifest: Manifest) -> list[Condition]:
    status: Any = manifest.get("status") or {}
    found: list[Condition] = []
    for condition in status.get("conditions") or ():
        try:
            found.append(Condition.model_validate(condition))
        except ValidationError:
            continue
    return found


def _generation(manifest: Manifest | None) -> int:
    metadata: Any = (manifest or {}).get("metadata") or {}
    return int(metadata.get("generation", 0))
