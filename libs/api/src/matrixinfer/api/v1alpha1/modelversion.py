"""ModelVersion: an immutable record of what a backend serves.

Made by the model-controller whenever what would be served changes, never for replica counts or traffic weights. The
downloader reports into its status what it found at the source.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from matrixinfer.api.conditions import Conditions
from matrixinfer.api.meta import ApiModel, ApiObject
from matrixinfer.api.v1alpha1.core import EnvFromSource, EnvVar
from matrixinfer.api.v1alpha1.kinds import MODEL_VERSION
from matrixinfer.api.v1alpha1.model import (
    MODEL_URI_PATTERN,
    BackendType,
    EngineConfig,
    LoraAdapter,
    WorkerType,
)

__all__ = ["DownloadProgress", "ModelVersion", "ModelVersionSpec", "ModelVersionStatus", "VersionWorker"]


class VersionWorker(ApiModel):
    """What the pods of one worker run."""

    type: WorkerType = WorkerType.SERVER
    """What they do."""
    image: str
    """Image of the engine."""
    pods: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Pods of each replica."""
    config: EngineConfig = None
    """Engine flags."""


class ModelVersionSpec(ApiModel):
    """What a version serves. It cannot be changed."""

    model_name: Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": 253})]
    """Name of the Model."""
    backend_name: Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": 253})]
    """Name of the backend."""
    served_name: Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": 256})]
    """The model name that the engine answers to."""
    type: BackendType
    """The engine and how it is laid out."""
    model_uri: Annotated[str, Field(alias="modelURI", pattern=MODEL_URI_PATTERN)]
    """Where the files of the model are."""
    include: Annotated[tuple[str, ...], Field(json_schema_extra={"maxItems": 64})] = ()
    """Globs of the files to fetch."""
    exclude: Annotated[tuple[str, ...], Field(json_schema_extra={"maxItems": 64})] = ()
    """Globs of the files to leave out."""
    env_from: Annotated[tuple[EnvFromSource, ...], Field(json_schema_extra={"x-kubernetes-list-type": "atomic"})] = ()
    """Environment of the downloader and the engine, from Secrets and ConfigMaps."""
    env: Annotated[
        tuple[EnvVar, ...],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = ()
    """Environment of the downloader and the engine."""
    workers: Annotated[tuple[VersionWorker, ...], Field(min_length=1, max_length=1000)]
    """What the pods run."""
    lora_adapters: Annotated[tuple[LoraAdapter, ...], Field(json_schema_extra={"maxItems": 1000})] = ()
    """Adapters that the engine serves beside the model."""


class DownloadProgress(ApiModel):
    """How far the slowest running download is."""

    bytes: Annotated[int, Field(json_schema_extra={"format": "int64"})] = 0
    """Bytes fetched."""
    percent: Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": 100})] = 0
    """Bytes fetched of all, in percent."""
    bytes_per_second: Annotated[int, Field(json_schema_extra={"format": "int64"})] = 0
    """Rate of late."""


class ModelVersionStatus(ApiModel):
    """What became of a version. The downloader writes what it found; the model-controller writes the rest."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = 0
    """Generation that the status speaks of."""
    resolved_revision: str | None = None
    """What the source calls the content that was fetched, for example a commit."""
    digest: Annotated[str, Field(json_schema_extra={"pattern": r"^sha256:[0-9a-f]{64}$"})] | None = None
    """sha256 over the canonical list of path, size and hash of all files."""
    short_digest: str | None = None
    """First digits of the digest, for people."""
    total_bytes: Annotated[int, Field(json_schema_extra={"format": "int64"})] | None = None
    """Bytes of all files."""
    size: str | None = None
    """Bytes of all files, for people."""
    file_count: int | None = None
    """Number of files."""
    progress: DownloadProgress | None = None
    """How far a running download is."""
    model_infer_name: str | None = None
    """The ModelInfer whose pods are made from the version."""
    conditions: Conditions = ()
    """`Resolved` and `Available` by the downloader; `Active` and `Failed` by the model-controller."""


class ModelVersion(ApiObject):
    """An immutable record of what a backend of a Model serves."""

    API_VERSION: ClassVar[str] = MODEL_VERSION.api_version
    KIND: ClassVar[str] = MODEL_VERSION.kind

    spec: ModelVersionSpec
    """What it serves."""
    status: ModelVersionStatus = Field(default_factory=ModelVersionStatus)
    """What became of it."""
