"""What every object shares: the base of all types, metadata, and the scalar forms of Kubernetes.

Owns how JSON becomes a typed value and back. Refuses to judge values: that is `v1alpha1.validation`, which works on
manifests, because an object that does not parse must still get an error for each bad field.

The trap: a typed object is a *reading*. Members that this version does not know are dropped on read, so never write
back what was read; render new manifests and apply only the fields you own.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Final, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel

from matrixinfer.api import durations, quantity

__all__ = [
    "NO_DEFAULT",
    "ApiModel",
    "ApiObject",
    "Duration",
    "IntOrString",
    "Json",
    "JsonObject",
    "LabelSelector",
    "LabelSelectorRequirement",
    "LocalObjectReference",
    "Manifest",
    "NonNegative",
    "ObjectMeta",
    "ObjectReference",
    "OwnerReference",
    "Quantity",
]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""A decoded JSON value."""

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object that this package passes through without looking inside (pod templates, affinity, environment)."""

Manifest: TypeAlias = Mapping[str, Json]
"""One Kubernetes object as decoded JSON. Read-only by convention."""

Duration: TypeAlias = Annotated[
    timedelta,
    BeforeValidator(lambda value: durations.parse(value) if isinstance(value, str) else value),
    PlainSerializer(durations.format, return_type=str),
    WithJsonSchema({"type": "string", "pattern": durations.PATTERN, "maxLength": 64}),
]
"""A span of time; in JSON a string in the syntax of Go (`1m30s`)."""

Quantity: TypeAlias = Annotated[
    int | str,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": quantity.PATTERN,
            "maxLength": 64,
        }
    ),
]
"""A Kubernetes quantity as it was written; `quantity.parse` gives the number."""

IntOrString: TypeAlias = Annotated[
    int | str,
    WithJsonSchema({"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
]
"""A count or a percentage; `intstr.resolve` gives the number."""

NonNegative: TypeAlias = Annotated[int, BeforeValidator(lambda value: max(value, 0) if type(value) is int else value)]
"""A count for which older manifests may hold a negative number, which means none: reads as zero."""


NO_DEFAULT: Final[dict[str, Any]] = {"default": None}
"""Schema extra of a field whose default is ours to assume on reading, and is not written into the object."""


class ApiModel(BaseModel):
    """Base of every type: snake_case attributes, camelCase JSON, frozen, unknown members ignored on read."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        arbitrary_types_allowed=False,
    )

    def to_manifest(self) -> dict[str, Json]:
        """Return the JSON form: camelCase names; what was never set, and null, is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)


class OwnerReference(ApiModel):
    """Who owns an object; garbage collection follows it."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(ApiModel):
    """The metadata that our services read. `name` is empty while the API server has not generated one."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def controller_uid(self) -> str:
        """Uid of the controller owner; empty without one."""
        return next((owner.uid for owner in self.owner_references if owner.controller), "")


class ApiObject(ApiModel):
    """Base of the seven top-level objects; subclasses add `spec` and `status`."""

    API_VERSION: ClassVar[str] = ""
    KIND: ClassVar[str] = ""

    metadata: ObjectMeta = Field(default_factory=ObjectMeta)

    @property
    def api_version(self) -> str:
        """`group/version` of the kind."""
        return self.API_VERSION

    @property
    def kind(self) -> str:
        """The kind, in CamelCase."""
        return self.KIND

    def to_manifest(self) -> dict[str, Json]:
        """Return the JSON form with `apiVersion` and `kind` filled in."""
        return {"apiVersion": self.API_VERSION, "kind": self.KIND, **super().to_manifest()}


class LocalObjectReference(ApiModel):
    """An object in the same namespace."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    name: str = ""
    """Name of the object, in the same namespace."""


class ObjectReference(ApiModel):
    """An object somewhere; only `kind` and `name` are used here."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    api_version: str | None = None
    field_path: str | None = None
    kind: str | None = None
    name: str | None = None
    namespace: str | None = None
    resource_version: str | None = None
    uid: str | None = None


class LabelSelectorRequirement(ApiModel):
    """One expression of a label selector."""

    key: str
    operator: str
    values: Annotated[tuple[str, ...], Field(json_schema_extra={"x-kubernetes-list-type": "atomic"})] = ()


class LabelSelector(ApiModel):
    """Labels that an object must have; an empty selector matches everything."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: Annotated[
        tuple[LabelSelectorRequirement, ...], Field(json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = ()
