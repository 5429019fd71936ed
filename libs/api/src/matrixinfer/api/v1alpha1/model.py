"""Model: what a user asks for. One model name, served by one or more backends."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from matrixinfer.api.conditions import Conditions
from matrixinfer.api.meta import NO_DEFAULT, ApiModel, ApiObject, Duration
from matrixinfer.api.v1alpha1.autoscaling import AutoscalingPolicySpec
from matrixinfer.api.v1alpha1.core import Affinity, EnvFromSource, EnvVar, Resources, Toleration
from matrixinfer.api.v1alpha1.kinds import MODEL
from matrixinfer.api.v1alpha1.modelroute import ModelMatch

__all__ = [
    "CACHE_URI_PATTERN",
    "DNS_NAME_PATTERN",
    "IMAGE_PATTERN",
    "MODEL_NAME_PATTERN",
    "MODEL_URI_PATTERN",
    "BackendRollout",
    "BackendStatus",
    "BackendType",
    "CanaryAnalysis",
    "CanaryStep",
    "EngineConfig",
    "LoraAdapter",
    "Model",
    "ModelBackend",
    "ModelSpec",
    "ModelStatus",
    "ModelWorker",
    "RolloutKind",
    "WorkerType",
]

DNS_NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
IMAGE_PATTERN: Final = r"^\S*$"
MODEL_NAME_PATTERN: Final = r"^[A-Za-z0-9]([-A-Za-z0-9._/:]*[A-Za-z0-9])?$"
MODEL_URI_PATTERN: Final = r"^(hf://|s3://|obs://|pvc://|ms://|https?://|file://).+"
CACHE_URI_PATTERN: Final = r"^(hostpath://|pvc://).+"

EngineConfig = Annotated[Any, Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""Engine flags as a JSON object: each key becomes `--key value`."""


class BackendType(StrEnum):
    """The engine of a backend and how it is laid out."""

    VLLM = "vLLM"
    VLLM_DISAGGREGATED = "vLLMDisaggregated"
    SGLANG = "SGLang"
    SGLANG_DISAGGREGATED = "SGLangDisaggregated"
    LLAMA_CPP = "LlamaCpp"
    MINDIE = "MindIE"
    MINDIE_DISAGGREGATED = "MindIEDisaggregated"

    @property
    def is_disaggregated(self) -> bool:
        """True when prefill and decode run in pods of their own."""
        return self.value.endswith("Disaggregated")


class WorkerType(StrEnum):
    """What a worker does."""

    SERVER = "server"
    PREFILL = "prefill"
    DECODE = "decode"
    CONTROLLER = "controller"
    COORDINATOR = "coordinator"


class RolloutKind(StrEnum):
    """How a new version takes over."""

    ROLLING = "Rolling"
    CANARY = "Canary"


class LoraAdapter(ApiModel):
    """A low-rank adapter; its name is a model name of its own."""

    name: Annotated[str, Field(pattern=DNS_NAME_PATTERN)]
    """The model name that clients send for it."""
    artifact_url: Annotated[str, Field(alias="artifactURL", pattern=MODEL_URI_PATTERN)]
    """Where its files are."""


class ModelWorker(ApiModel):
    """The pods that do one part of the work of a backend."""

    type: WorkerType = WorkerType.SERVER
    """What they do."""
    image: Annotated[str, Field(json_schema_extra={"pattern": IMAGE_PATTERN})] | None = None
    """Image of the engine; absent takes the one the controller knows for the engine."""
    replicas: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """Replicas in each group."""
    pods: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """Pods of each replica: more than one for an engine that spans nodes."""
    resources: Resources = Field(default_factory=dict[str, Any])
    """Resources of the engine container."""
    affinity: Affinity = Field(default_factory=dict[str, Any])
    """Affinity of the pods."""
    node_selector: Annotated[dict[str, str], Field(json_schema_extra={"x-kubernetes-map-type": "atomic"})] = Field(
        default_factory=dict
    )
    """Labels of the nodes that the pods may run on."""
    tolerations: Annotated[tuple[Toleration, ...], Field(json_schema_extra={"x-kubernetes-list-type": "atomic"})] = ()
    """Taints that the pods bear."""
    runtime_class_name: Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": 253})] | None = None
    """RuntimeClass of the pods, for example `nvidia`."""
    config: EngineConfig = None
    """Engine flags: each key becomes `--key value`."""


class CanaryStep(ApiModel):
    """One step of a canary."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """Percent of the backend's traffic that the new version gets."""
    hold_seconds: Annotated[int, Field(ge=0, le=604_800)] = 60
    """How long it is watched before the next step."""


class CanaryAnalysis(ApiModel):
    """What a new version must keep to; a breach rolls it back."""

    max_error_rate_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Share of requests that may fail."""
    ttft_p95_milliseconds: Annotated[int, Field(ge=1)] | None = None
    """Time to the first token that 95 of 100 requests keep to."""
    tpot_p95_milliseconds: Annotated[int, Field(ge=1)] | None = None
    """Time per token that 95 of 100 requests keep to."""
    min_requests: Annotated[int, Field(ge=1)] = 20
    """Requests that must have been seen before it is judged."""


class BackendRollout(ApiModel):
    """How a new version of a backend takes over."""

    strategy: RolloutKind = RolloutKind.ROLLING
    """In place, or beside the old one with growing weight."""
    steps: Annotated[tuple[CanaryStep, ...], Field(json_schema_extra={"maxItems": 32})] = ()
    """Steps of a canary, weights rising."""
    analysis: CanaryAnalysis | None = None
    """What the new version must keep to."""


class ModelBackend(ApiModel):
    """One way in which the model is served."""

    name: Annotated[str, Field(pattern=DNS_NAME_PATTERN)]
    """Name of the backend, unique in the Model; objects made for it are named `<model>-<backend>`."""
    type: BackendType
    """The engine and how it is laid out."""
    model_uri: Annotated[str, Field(alias="modelURI", pattern=MODEL_URI_PATTERN)]
    """Where the files of the model are; a revision may follow `@`."""
    cache_uri: Annotated[Annotated[str, Field(pattern=CACHE_URI_PATTERN)] | None, Field(alias="cacheURI")] = None
    """Where the files are kept between pods; absent keeps them in each pod."""
    include: Annotated[tuple[str, ...], Field(json_schema_extra={"maxItems": 64})] = ()
    """Globs of the files to fetch; absent fetches all."""
    exclude: Annotated[tuple[str, ...], Field(json_schema_extra={"maxItems": 64})] = ()
    """Globs of the files to leave out."""
    env_from: Annotated[tuple[EnvFromSource, ...], Field(json_schema_extra={"x-kubernetes-list-type": "atomic"})] = ()
    """Environment of the downloader and the engine, from Secrets and ConfigMaps."""
    env: Annotated[
        tuple[EnvVar, ...],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = ()
    """Environment of the downloader and the engine; `ENDPOINT` is the address of an S3 server."""
    min_replicas: Annotated[int, Field(ge=0, le=1_000_000)]
    """Fewest groups; zero with an autoscaling policy means scaling to zero."""
    max_replicas: Annotated[int, Field(ge=1, le=1_000_000)]
    """Most groups."""
    scaling_cost: Annotated[int, Field(ge=0, json_schema_extra=NO_DEFAULT)] = 0
    """Cost of one group relative to those of other backends."""
    route_weight: Annotated[int, Field(ge=0, le=100)] = 100
    """Share of the traffic relative to other backends."""
    scale_to_zero_grace_period: Duration | None = None
    """How long nobody must have asked before everything stops."""
    workers: Annotated[tuple[ModelWorker, ...], Field(min_length=1, max_length=1000)]
    """The pods of a group: one `server`, or `prefill` and `decode`."""
    lora_adapters: Annotated[tuple[LoraAdapter, ...], Field(json_schema_extra={"maxItems": 1000})] = ()
    """Adapters that the engine serves beside the model."""
    autoscaling_policy: AutoscalingPolicySpec | None = None
    """How the groups of this backend follow load; not together with one of the Model."""
    scheduler_name: str | None = None
    """Scheduler of the pods; absent is the cluster's default."""
    version_name: Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": 253})] | None = None
    """Serve this ModelVersion of the backend instead of what the fields above say."""
    rollout: BackendRollout | None = None
    """How a new version takes over."""


class ModelSpec(ApiModel):
    """What is served and how."""

    name: Annotated[str, Field(json_schema_extra={"maxLength": 256, "pattern": MODEL_NAME_PATTERN})] | None = None
    """The model name that clients send; absent is the name of the object."""
    owner: str | None = None
    """Who answers for the model."""
    backends: Annotated[
        tuple[ModelBackend, ...],
        Field(
            min_length=1,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "maxItems": 16,
            },
        ),
    ]
    """The ways in which it is served."""
    autoscaling_policy: AutoscalingPolicySpec | None = None
    """How the groups of all backends follow load together, by cost."""
    cost_expansion_rate_percent: Annotated[int, Field(ge=0, le=1000)] | None = None
    """How much dearer a faster mix of backends may be."""
    model_match: ModelMatch | None = None
    """Which requests are taken; absent takes all that name the model."""
    version_history_limit: Annotated[int, Field(ge=0, le=1000)] = 10
    """Versions kept that neither serve nor are pinned."""


class BackendStatus(ApiModel):
    """What there is of one backend."""

    name: str
    """Name of its ModelInfer."""
    replicas: int
    """Groups that exist."""
    ready_replicas: int | None = None
    """Groups that are ready."""
    version_name: str | None = None
    """The ModelVersion that its pods are made from."""
    message: str | None = None
    """What it waits for, while it is not ready."""


class ModelStatus(ApiModel):
    """What there is of a Model."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = 0
    """Generation that the status speaks of."""
    replicas: int | None = None
    """Groups of all backends."""
    ready_replicas: int | None = None
    """Ready groups of all backends."""
    active_versions: str | None = None
    """The versions that serve, as text; `backendStatuses` has them one by one."""
    endpoint_name: str | None = None
    """The model name that clients send."""
    backend_statuses: Annotated[
        tuple[BackendStatus, ...], Field(json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = ()
    """What there is of each backend."""
    conditions: Conditions = ()
    """`Initialized`, `Progressing`, `Active` and `Failed`."""


class Model(ApiObject):
    """A model to serve: what a user asks for."""

    API_VERSION: ClassVar[str] = MODEL.api_version
    KIND: ClassVar[str] = MODEL.kind

    spec: ModelSpec
    """What is served and how."""
    status: ModelStatus = Field(default_factory=ModelStatus)
    """What there is of it."""

    @property
    def served_name(self) -> str:
        """The model name that clients send."""
        return self.spec.name or self.metadata.name
