"""Which engine a backend type or an engine name means. The only list of engines in the suite."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from matrixinfer.engines.engine import Engine, EngineName
from matrixinfer.engines.errors import UnsupportedBackend
from matrixinfer.engines.llamacpp import LLAMACPP
from matrixinfer.engines.sglang import SGLANG
from matrixinfer.engines.vllm import VLLM

__all__ = ["BACKEND_TYPES", "ENGINES", "engine_for", "engine_named", "is_disaggregated"]

ENGINES: Final[Mapping[EngineName, Engine]] = MappingProxyType({e.name: e for e in (VLLM, SGLANG, LLAMACPP)})
"""Every engine by name."""

BACKEND_TYPES: Final[Mapping[str, EngineName]] = MappingProxyType(
    {
        "vLLM": EngineName.VLLM,
        "vLLMDisaggregated": EngineName.VLLM,
        "SGLang": EngineName.SGLANG,
        "SGLangDisaggregated": EngineName.SGLANG,
        "LlamaCpp": EngineName.LLAMACPP,
    }
)
"""`Model.spec.backends[].type` → engine."""


def engine_for(backend_type: str) -> Engine:
    """The engine of a Model's backend type. Raises `UnsupportedBackend`, naming the types that work."""
    name = BACKEND_TYPES.get(backend_type)
    if name is None:
        known = ", ".join(BACKEND_TYPES)
        raise UnsupportedBackend(f"no engine module for backend type {backend_type!r} exists; use one of {known}")
    return ENGINES[name]


def engine_named(name: str) -> Engine:
    """The engine of a `ModelServer.spec.inferenceEngine`. Raises `UnsupportedBackend`, naming those that work."""
    try:
        return ENGINES[EngineName(name)]
    except ValueError:
        raise UnsupportedBackend(f"no engine named {name!r} is known; use one of {', '.join(ENGINES)}") from None


def is_disaggregated(backend_type: str) -> bool:
    """True when prefill and decode run in workers of their own."""
    return backend_type.endswith("Disaggregated")
