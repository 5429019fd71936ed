"""What an engine is to the rest of the suite: one frozen value per engine.

Owns: the vocabulary (`Engine`, `Launch`, `Command`, `LoraApi`). Each engine's facts live in its own module
(`vllm`, `sglang`, `llamacpp`); `catalog` maps backend types to them.
Trap: `$(NAME)` in an argument is expanded by the kubelet from the container's environment, and only by it: the
strings here are not usable as a local command line when they contain such a reference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from matrixinfer.engines.config_flags import Json, normalised
from matrixinfer.engines.errors import ConfigRefused

__all__ = ["Command", "Engine", "EngineName", "Launch", "LoraApi", "Phase", "Port", "WireRequest"]


class EngineName(StrEnum):
    """Engines we know; the values are those of `ModelServer.spec.inferenceEngine`."""

    VLLM = "vLLM"
    SGLANG = "SGLang"
    LLAMACPP = "LlamaCpp"


class Phase(StrEnum):
    """Which part of a request this worker computes; the values are the worker types of a Model."""

    SERVER = "server"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Port:
    """A container port: `name` fits a Kubernetes port name."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Launch:
    """One engine container to be started.

    `nodes` pods form one engine (`worker.pods`); `entry` tells the pod that answers HTTP from the others.
    `lora` asks for an engine that takes adapters at run time.
    """

    model_path: str
    served_name: str
    port: int = 8000
    # The pod's own address is not known before it runs.
    host: str = "0.0.0.0"  # noqa: S104
    config: Json = None
    phase: Phase = Phase.SERVER
    nodes: int = 1
    entry: bool = True
    lora: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """How a container runs its engine.

    `argv` is the container's `command` (exec form). `env` holds EnvVar objects that go in front of the user's own.
    `ports` always starts with the HTTP port for an entry pod; a worker pod has none that a client may use.
    `ignored` names config keys that lost against a flag that we set: say so in a condition.
    """

    argv: tuple[str, ...]
    env: tuple[dict[str, Json], ...] = ()
    ports: tuple[Port, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A request to an engine's HTTP server; `body` is sent as JSON."""

    method: str
    path: str
    body: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LoraApi:
    """The engine's own run-time adapter endpoints.

    Loading and unloading are not idempotent on the wire; `load_succeeded` and `unload_succeeded` make them so.
    """

    load_path: str
    unload_path: str
    models_path: str = "/v1/models"

    def load(self, name: str, path: str) -> WireRequest:
        """Load the adapter that lies at `path` in the engine's own file system."""
        return WireRequest("POST", self.load_path, {"lora_name": name, "lora_path": path})

    def unload(self, name: str) -> WireRequest:
        """Unload an adapter."""
        return WireRequest("POST", self.unload_path, {"lora_name": name})

    def load_succeeded(self, status: int, body: str) -> bool:
        """True when the adapter is loaded now, be it by this request or an earlier one."""
        return status // 100 == 2 or (status == 400 and "already" in body.lower())

    def unload_succeeded(self, status: int, body: str) -> bool:
        """True when the adapter is not loaded now."""
        text = body.lower()
        return status // 100 == 2 or (status in {400, 404} and ("not found" in text or "cannot be found" in text))

    def loaded(self, models: Json) -> frozenset[str]:
        """Adapter names in the answer of `GET models_path`: the entries that have a parent model."""
        data = models.get("data") if isinstance(models, dict) else None
        entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
        return frozenset(str(entry["id"]) for entry in entries if entry.get("parent") and "id" in entry)


@dataclass(frozen=True, slots=True)
class Engine:
    """All we know of one engine. Values only: get one from `catalog.engine_for` or `catalog.engine_named`."""

    name: EngineName
    command: Callable[[Launch], Command]
    """Builds the container's command; raises `ConfigRefused` naming the config key that cannot work."""
    port: int = 8000
    health_path: str = "/health"
    metrics_path: str = "/metrics"
    startup_seconds: int = 1800
    """How long a start may take before the container counts as broken (weights load, kernels compile)."""
    adds_usage_event: bool = False
    """Whether `stream_options.include_usage` adds one event without choices to the end of a stream and changes nothing
    else of it."""
    served_name_flags: Sequence[str] = ("served-model-name",)
    spellings: Mapping[str, str] = field(default_factory=dict)
    """Paths that clients use and the engine has under another name only, with that name."""
    lora: LoraApi | None = None
    multi_node: bool = False
    phases: frozenset[Phase] = field(default=frozenset({Phase.SERVER}))

    def port_of(self, config: Json) -> int:
        """The HTTP port that a worker's config asks for, else the default. Raises `ConfigRefused`."""
        value = normalised(config).get("port", self.port)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
            raise ConfigRefused("port", f"config port {value!r} is not a port; use a number from 1 to 65535")
        return value

    def served_name_of(self, config: Json) -> str | None:
        """The model name that a worker's config asks the engine to answer to; the first when it lists several."""
        named = normalised(config)
        for flag in self.served_name_flags:
            value = named.get(flag)
            first = value[0] if isinstance(value, list) and value else value
            if isinstance(first, str) and first:
                return first
        return None
