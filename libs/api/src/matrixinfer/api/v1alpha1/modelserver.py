"""ModelServer: a set of engine pods as one thing to send requests to, and how to treat it."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from matrixinfer.api.conditions import Conditions
from matrixinfer.api.meta import NO_DEFAULT, ApiModel, ApiObject, Duration, NonNegative
from matrixinfer.api.v1alpha1.kinds import MODEL_SERVER

__all__ = [
    "CircuitBreaker",
    "InferenceEngine",
    "KVConnector",
    "KVConnectorType",
    "ModelServer",
    "ModelServerSpec",
    "ModelServerStatus",
    "PDGroup",
    "Protocol",
    "Retry",
    "SchedulerPlugin",
    "SchedulerProfile",
    "SessionAffinity",
    "SessionSource",
    "TrafficPolicy",
    "WorkloadPort",
    "WorkloadSelector",
]


class InferenceEngine(StrEnum):
    """The dialect that the pods speak: metric names, health paths, adapter calls."""

    VLLM = "vLLM"
    SGLANG = "SGLang"
    LLAMA_CPP = "LlamaCpp"


class Protocol(StrEnum):
    """How the gateway talks to the pods."""

    HTTP = "http"
    HTTPS = "https"


class KVConnectorType(StrEnum):
    """How prefill hands its key-value cache to decode."""

    HTTP = "http"
    LMCACHE = "lmcache"
    NIXL = "nixl"
    MOONCAKE = "mooncake"
    SGLANG = "sglang"


class SessionSource(StrEnum):
    """Where the identity of a conversation is found."""

    HEADER = "Header"
    COOKIE = "Cookie"


class PDGroup(ApiModel):
    """Which pods prefill and which decode, and which belong together."""

    group_key: str
    """A label; a prefill and a decode pod pair when its value is equal."""
    prefill_labels: dict[str, str]
    """Labels of the pods that prefill."""
    decode_labels: dict[str, str]
    """Labels of the pods that decode."""


class WorkloadSelector(ApiModel):
    """Which pods of the namespace belong to the server."""

    match_labels: dict[str, str] = Field(default_factory=dict)
    """Labels that a pod must have."""
    pd_group: PDGroup | None = None
    """Splits the pods into prefill and decode."""


class WorkloadPort(ApiModel):
    """Where the engine listens in its pod."""

    port: Annotated[int, Field(ge=1, le=65535)]
    """Port of the OpenAI-compatible HTTP server."""
    protocol: Protocol = Protocol.HTTP
    """Plain HTTP, or TLS."""
    grpc_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the engine's gRPC server, where it has one."""


class Retry(ApiModel):
    """Trying again on another endpoint, as long as no byte of an answer has gone out."""

    attempts: Annotated[NonNegative, Field(json_schema_extra={**NO_DEFAULT, "maximum": 100})] = 0
    """Tries after the first; below one means none."""
    retry_interval: Duration = Field(default="100ms", validate_default=True)
    """Pause before a try."""


class CircuitBreaker(ApiModel):
    """Leaving out an endpoint that fails."""

    consecutive_failures: Annotated[int, Field(ge=1, le=1000)] = 5
    """Failures in a row that take an endpoint out."""
    base_ejection: Duration = Field(default="10s", validate_default=True)
    """How long it stays out the first time; it doubles each time after."""
    max_ejected_percent: Annotated[int, Field(ge=0, le=100)] = 50
    """Never leave out more than this share of the endpoints."""


class SessionAffinity(ApiModel):
    """Sending the turns of one conversation to the endpoint that remembers it."""

    source: SessionSource = SessionSource.HEADER
    """Where the identity of the conversation is found."""
    name: Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": 256})]
    """Name of the header or cookie."""
    ttl: Duration = Field(default="1h", validate_default=True)
    """How long a conversation is remembered after its last request."""


class TrafficPolicy(ApiModel):
    """Deadlines, retries and limits of the requests to a server."""

    timeout: Duration | None = None
    """From the first byte of the request to the last of the answer; absent is without limit."""
    first_byte_timeout: Duration | None = None
    """Until the first byte of the answer."""
    idle_timeout: Duration | None = None
    """Between two bytes of the answer."""
    retry: Retry | None = None
    """Trying again on another endpoint."""
    circuit_breaker: CircuitBreaker | None = None
    """Leaving out an endpoint that fails."""
    max_in_flight_per_endpoint: Annotated[int, Field(ge=1)] | None = None
    """Requests that one endpoint is given at a time; more wait in the gateway."""
    session_affinity: SessionAffinity | None = None
    """Keeping a conversation on one endpoint."""


class KVConnector(ApiModel):
    """How prefill hands its key-value cache to decode."""

    type: KVConnectorType = KVConnectorType.HTTP
    """The connector that the engines were started with."""


class SchedulerPlugin(ApiModel):
    """One filter, scorer or picker of a scheduling profile."""

    name: Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": 63})]
    """Name of the plugin, as the gateway lists them."""
    weight: Annotated[int, Field(ge=0, le=100)] = 1
    """Weight of a scorer against the others."""


class SchedulerProfile(ApiModel):
    """How an endpoint is chosen for a request."""

    plugins: Annotated[
        tuple[SchedulerPlugin, ...],
        Field(
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "maxItems": 32,
                "minItems": 1,
            }
        ),
    ]
    """The plugins in force, instead of those of the gateway's default profile."""


class ModelServerSpec(ApiModel):
    """Which pods serve, what they speak, and how requests to them are treated."""

    model: Annotated[str, Field(max_length=256)] | None = None
    """Name of the model as the engine knows it; the gateway writes it into requests that say otherwise."""
    inference_engine: InferenceEngine
    """The engine that the pods run."""
    workload_selector: WorkloadSelector
    """The pods, in the namespace of the server."""
    workload_port: WorkloadPort
    """Where the engine listens."""
    traffic_policy: TrafficPolicy | None = None
    """Deadlines, retries and limits."""
    kv_connector: KVConnector | None = None
    """How prefill hands its cache to decode."""
    scheduler: SchedulerProfile | None = None
    """How an endpoint is chosen; absent takes the gateway's default profile."""


class ModelServerStatus(ApiModel):
    """What the gateway sees of a server."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = 0
    """Generation that the status speaks of."""
    ready_endpoints: int | None = None
    """Pods that take requests."""
    total_endpoints: int | None = None
    """Pods that the selector takes."""
    endpoints: str | None = None
    """Both counts as text: `2/3`."""
    conditions: Conditions = ()
    """`Accepted`, and `Ready` while an endpoint takes requests."""


class ModelServer(ApiObject):
    """A set of engine pods as one thing to send requests to."""

    API_VERSION: ClassVar[str] = MODEL_SERVER.api_version
    KIND: ClassVar[str] = MODEL_SERVER.kind

    spec: ModelServerSpec
    """Which pods serve and how requests to them are treated."""
    status: ModelServerStatus = Field(default_factory=ModelServerStatus)
    """What the gateway sees of it."""
