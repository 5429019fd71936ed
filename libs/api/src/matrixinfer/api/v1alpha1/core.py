"""Core Kubernetes types that our objects embed, passed through as plain JSON.

Each alias carries a marker that `schema` resolves to the real structural schema (`core_schema.json`, trimmed from what
an API server publishes), so a typo inside a pod template is refused like a typo in a field of ours.
"""

from typing import Annotated, Final, TypeAlias

from pydantic import Field, WithJsonSchema

from matrixinfer.api.meta import ApiModel, JsonObject

__all__ = [
    "MARKER",
    "Affinity",
    "EnvFromSource",
    "EnvVar",
    "PodSpec",
    "PodTemplate",
    "Resources",
    "TemplateMetadata",
    "Toleration",
]

MARKER: Final = "x-core-type"
"""Key of the schema node that names a core type."""

PodSpec: TypeAlias = Annotated[JsonObject, WithJsonSchema({MARKER: "PodSpec"})]
"""`core/v1 PodSpec`."""
EnvVar: TypeAlias = Annotated[JsonObject, WithJsonSchema({MARKER: "EnvVar"})]
"""`core/v1 EnvVar`."""
EnvFromSource: TypeAlias = Annotated[JsonObject, WithJsonSchema({MARKER: "EnvFromSource"})]
"""`core/v1 EnvFromSource`."""
Affinity: TypeAlias = Annotated[JsonObject, WithJsonSchema({MARKER: "Affinity"})]
"""`core/v1 Affinity`."""
Resources: TypeAlias = Annotated[JsonObject, WithJsonSchema({MARKER: "ResourceRequirements"})]
"""`core/v1 ResourceRequirements`."""
Toleration: TypeAlias = Annotated[JsonObject, WithJsonSchema({MARKER: "Toleration"})]
"""`core/v1 Toleration`."""


class TemplateMetadata(ApiModel):
    """Labels and annotations that every pod of a template gets."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the pods."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the pods."""


class PodTemplate(ApiModel):
    """What a pod is made from."""

    metadata: TemplateMetadata = Field(default_factory=TemplateMetadata)
    """Labels and annotations of the pods."""
    spec: PodSpec
    """The pod, as Kubernetes defines it."""
