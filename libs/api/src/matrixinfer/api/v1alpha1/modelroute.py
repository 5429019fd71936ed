"""ModelRoute: which ModelServers answer for a model name, and under which limits."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from matrixinfer.api.conditions import Conditions
from matrixinfer.api.meta import NO_DEFAULT, ApiModel, ApiObject, Duration
from matrixinfer.api.v1alpha1.kinds import MODEL_ROUTE

__all__ = [
    "BodyMatch",
    "Fallback",
    "GlobalRateLimit",
    "ModelMatch",
    "ModelRoute",
    "ModelRouteSpec",
    "ModelRouteStatus",
    "RateLimit",
    "RateLimitScope",
    "RateLimitUnit",
    "RedisLimit",
    "RouteTimeouts",
    "Rule",
    "StringMatch",
    "TargetModel",
    "TargetTraffic",
]


class StringMatch(ApiModel):
    """A text to compare with; at most one of the three is looked at, in this order. Empty matches everything."""

    exact: str | None = None
    """The whole text."""
    prefix: str | None = None
    """How the text begins."""
    regex: str | None = None
    """An RE2 expression found anywhere in the text."""


class BodyMatch(ApiModel):
    """What the JSON body of the request must hold."""

    model: str | None = None
    """Value of the body's `model`, compared whole: one of the names that the route answers for."""


class ModelMatch(ApiModel):
    """Which requests a rule takes; all that is set must match."""

    headers: dict[str, StringMatch] = Field(default_factory=dict)
    """Headers by name, in any case; a header that is missing counts as empty."""
    uri: StringMatch | None = None
    """The path of the URL."""
    body: BodyMatch | None = None
    """The JSON body."""


class TargetModel(ApiModel):
    """A ModelServer and its share of the traffic."""

    model_server_name: Annotated[str, Field(json_schema_extra={"minLength": 1})]
    """Name of a ModelServer in the namespace of the route."""
    weight: Annotated[int, Field(ge=0, le=100)] = 100
    """Share relative to the other targets of the rule; the sum need not be 100."""


class Fallback(ApiModel):
    """Where a request goes when no target before it has an endpoint that answers."""

    model_server_name: Annotated[str, Field(json_schema_extra={"minLength": 1})]
    """Name of a ModelServer in the namespace of the route."""


class Rule(ApiModel):
    """One rule of a route: the first that matches decides."""

    name: str | None = None
    """A name for logs and metrics."""
    model_match: ModelMatch | None = None
    """Which requests the rule takes; absent takes all."""
    target_models: Annotated[tuple[TargetModel, ...], Field(min_length=1, max_length=16)]
    """Where the requests go, by weight."""
    fallbacks: Annotated[tuple[Fallback, ...], Field(max_length=16)] = ()
    """Where the requests go, in order, when the targets cannot answer."""


class RateLimitUnit(StrEnum):
    """The span over which tokens are counted."""

    SECOND = "second"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class RateLimitScope(StrEnum):
    """Who shares one budget."""

    ROUTE = "Route"
    SUBJECT = "Subject"


class RedisLimit(ApiModel):
    """The Redis that holds a budget shared by all gateways."""

    address: Annotated[str, Field(pattern=r"^[^:/\s]+:[0-9]{1,5}$")]
    """`host:port`."""


class GlobalRateLimit(ApiModel):
    """Where a budget shared by all gateways is kept."""

    redis: RedisLimit
    """The Redis that holds it."""


class RateLimit(ApiModel):
    """Token budgets of a route."""

    input_tokens_per_unit: Annotated[int, Field(ge=1)] | None = None
    """Prompt tokens allowed per unit; absent is without limit."""
    output_tokens_per_unit: Annotated[int, Field(ge=1)] | None = None
    """Generated tokens allowed per unit; absent is without limit."""
    unit: RateLimitUnit = RateLimitUnit.SECOND
    """The span over which tokens are counted."""
    scope: RateLimitScope = RateLimitScope.ROUTE
    """One budget for the route, or one for each caller."""
    global_: Annotated[GlobalRateLimit | None, Field(alias="global")] = None
    """Share the budget between gateways; absent counts in each gateway on its own."""


class RouteTimeouts(ApiModel):
    """Deadlines of the requests of a route; what a ModelServer sets is used where a route is silent."""

    request: Duration | None = None
    """From the first byte of the request to the last of the answer."""
    first_byte: Duration | None = None
    """Until the first byte of the answer."""
    idle: Duration | None = None
    """Between two bytes of the answer."""


class ModelRouteSpec(ApiModel):
    """Which requests a route answers and where they go."""

    model_name: str | None = None
    """The model name that clients send. It cannot be changed."""
    lora_adapters: Annotated[tuple[str, ...], Field(max_length=10)] = ()
    """Further model names, one for each adapter, that the same rules answer for."""
    rules: Annotated[tuple[Rule, ...], Field(max_length=16)]
    """Ordered rules; the first that matches decides, none is an answer of 404."""
    rate_limit: RateLimit | None = None
    """Token budgets."""
    timeouts: RouteTimeouts | None = None
    """Deadlines of requests."""
    priority: Annotated[int, Field(ge=0, le=1000, json_schema_extra=NO_DEFAULT)] = 0
    """Under load, requests of a higher priority are served first."""


class TargetTraffic(ApiModel):
    """What the gateways saw of one target over the last minute."""

    model_server_name: str
    """Name of the ModelServer."""
    requests: int = 0
    """Requests that ended."""
    errors: int = 0
    """Requests that ended with an error of ours or of the engine."""
    ttft_p50_milliseconds: int | None = None
    """Median time to the first token."""
    ttft_p95_milliseconds: int | None = None
    """Time to the first token of the slowest twentieth."""
    tpot_p50_milliseconds: int | None = None
    """Median time per token after the first."""
    tpot_p95_milliseconds: int | None = None
    """Time per token after the first of the slowest twentieth."""


class ModelRouteStatus(ApiModel):
    """What the gateway made of a route."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = 0
    """Generation that the status speaks of."""
    rules: int | None = None
    """Rules in force."""
    targets: tuple[TargetTraffic, ...] = ()
    """Traffic of the last minute, for each target."""
    conditions: Conditions = ()
    """`Accepted`, `Conflicted` and `ResolvedRefs`."""


class ModelRoute(ApiObject):
    """Routes requests for a model name to ModelServers."""

    API_VERSION: ClassVar[str] = MODEL_ROUTE.api_version
    KIND: ClassVar[str] = MODEL_ROUTE.kind

    spec: ModelRouteSpec
    """Which requests the route answers and where they go."""
    status: ModelRouteStatus = Field(default_factory=ModelRouteStatus)
    """What the gateway made of it."""
