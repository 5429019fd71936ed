"""Says what is wrong with a manifest: the one place, used by the webhook, the controllers and tests alike.

`validate` never raises, whatever it is given. Shape comes first (the structural schema); relations between fields are
looked at once the shape is right, on the typed object. Objects that a manifest names are not looked up here: whether
they exist is a warning of the webhook, and a condition of the controller.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from matrixinfer.api.errors import FieldError
from matrixinfer.api.meta import ApiObject, JsonObject, Manifest
from matrixinfer.api.v1alpha1 import structural
from matrixinfer.api.v1alpha1.defaults import with_defaults
from matrixinfer.api.v1alpha1.rules.autoscaling import binding_errors, binding_notices, policy_errors
from matrixinfer.api.v1alpha1.rules.model import model_errors, model_notices, version_errors
from matrixinfer.api.v1alpha1.rules.modelinfer import infer_errors, infer_notices
from matrixinfer.api.v1alpha1.rules.networking import route_errors, route_notices, server_errors, server_notices
from matrixinfer.api.v1alpha1.schema import TYPES, structural_schema

__all__ = ["FieldError", "validate", "validate_deletion", "warnings"]

# The object passed is always of the kind that the table names the function for.
_Rules = Callable[[Any, Any], Iterator[FieldError]]


@dataclass(frozen=True, slots=True)
class _RuleSet:
    errors: _Rules
    notices: _Rules = lambda _new, _old: iter(())


_RULES: Final[Mapping[str, _RuleSet]] = {
    "Model": _RuleSet(model_errors, model_notices),
    "ModelVersion": _RuleSet(version_errors),
    "AutoscalingPolicy": _RuleSet(policy_errors),
    "AutoscalingPolicyBinding": _RuleSet(binding_errors, binding_notices),
    "ModelInfer": _RuleSet(infer_errors, infer_notices),
    "ModelServer": _RuleSet(server_errors, server_notices),
    "ModelRoute": _RuleSet(route_errors, route_notices),
}
_METADATA: Final[JsonObject] = {
    "type": "object",
    "x-kubernetes-preserve-unknown-fields": True,
    "properties": {
        "name": {"type": "string", "maxLength": 253},
        "generateName": {"type": "string", "maxLength": 253},
        "namespace": {"type": "string", "maxLength": 63},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "finalizers": {"type": "array", "items": {"type": "string"}},
    },
}


def validate(new: Manifest, old: Manifest | None = None) -> list[FieldError]:
    """Return every fault of `new`, empty when it may be stored. `old` is what it replaces, if anything.

    Defaults are assumed where fields are absent, as the API server would have filled them in.
    """
    if not isinstance(new, Mapping):
        return [FieldError("", "a manifest is an object", "write apiVersion, kind, metadata and spec")]
    faults = list(_identity_errors(new))
    if faults:
        return faults
    kind = str(new["kind"])
    filled = with_defaults(new)
    faults = list(structural.check(filled, _with_metadata(kind)))
    if faults:
        return faults
    typed = _typed(filled, kind)
    if not isinstance(typed, ApiObject):
        return typed
    return list(_RULES[kind].errors(typed, _replaced(old, kind)))


def warnings(new: Manifest, old: Manifest | None = None) -> list[FieldError]:
    """Return what is legal in a valid manifest but hardly meant; empty for one that is not valid."""
    if validate(new, old):
        return []
    kind = str(new["kind"])
    typed = _typed(with_defaults(new), kind)
    return list(_RULES[kind].notices(typed, _replaced(old, kind))) if isinstance(typed, ApiObject) else []


def validate_deletion(old: Manifest) -> list[FieldError]:
    """Return why an object must not be deleted by a user: a ModelVersion that serves traffic.

    The garbage collector must not be asked: when the Model is gone, its versions go too.
    """
    if not isinstance(old, Mapping) or old.get("kind") != "ModelVersion":
        return []
    status = old.get("status")
    conditions = status.get("conditions") if isinstance(status, Mapping) else None
    serves = isinstance(conditions, list) and any(
        isinstance(condition, Mapping) and condition.get("type") == "Active" and condition.get("status") == "True"
        for condition in conditions
    )
    if not serves:
        return []
    return [
        FieldError(
            "metadata.name",
            "this ModelVersion serves traffic",
            "change or delete its Model; versions out of use are removed",
        )
    ]


def _identity_errors(new: Manifest) -> Iterator[FieldError]:
    kind = new.get("kind")
    if not isinstance(kind, str) or kind not in TYPES:
        yield FieldError("kind", f"{kind!r} is not one of our kinds", f"write one of {', '.join(TYPES)}")
        return
    wanted = TYPES[kind].API_VERSION
    if new.get("apiVersion") != wanted:
        yield FieldError("apiVersion", f"cannot be {new.get('apiVersion')!r} for a {kind}", f"write {wanted}")


def _with_metadata(kind: str) -> JsonObject:
    schema = structural_schema(kind)
    return {**schema, "properties": {**schema["properties"], "metadata": _METADATA}}


def _typed(filled: Manifest, kind: str) -> ApiObject | list[FieldError]:
    try:
        return TYPES[kind].model_validate(filled)
    except ValidationError as fault:
        return [
            FieldError(_path(error["loc"]), str(error["msg"]), "correct the value")
            for error in fault.errors(include_url=False)
        ]


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path = f"{path}[{part}]" if isinstance(part, int) else structural.joined(path, part)
    return path


def _replaced(old: Manifest | None, kind: str) -> ApiObject | None:
    """The object before, typed; none when it does not fit the types of today, because then nothing can be compared."""
    if not isinstance(old, Mapping):
        return None
    try:
        return TYPES[kind].model_validate(with_defaults(old))
    except ValidationError:
        return None
