"""Which paths the gateway answers, forwards or refuses. Pure; paths are percent-decoded bytes without the query."""

from enum import StrEnum

from matrixinfer.engines.catalog import ENGINES

__all__ = ["Surface", "surface"]

_PREFIX = b"/v1/"
_MODELS = b"/v1/models"

# Engines offer these beside inference. They change what a pod serves: the controllers' to call, not a client's.
_ENGINE_ADMIN = frozenset(
    path.encode()
    for engine in ENGINES.values()
    if engine.lora
    for path in (engine.lora.load_path, engine.lora.unload_path)
)


class Surface(StrEnum):
    """What a path is to the gateway."""

    INFERENCE = "inference"
    MODELS = "models"
    MODEL = "model"
    HEALTH = "health"
    READY = "ready"
    MALFORMED = "malformed"
    NOTHING = "nothing"


def surface(path: bytes) -> Surface:
    """Classify a path. Dot segments, empty segments and control bytes are malformed: peers disagree about them."""
    segments = path.removesuffix(b"/").split(b"/")[1:]
    if any(s in (b"", b".", b"..") for s in segments) or any(c < 0x20 or c in b"\\\x7f" for c in path):
        return Surface.MALFORMED if path.startswith(b"/") and path != b"/" else Surface.NOTHING
    if path == b"/healthz":
        return Surface.HEALTH
    if path == b"/readyz":
        return Surface.READY
    if path == _MODELS:
        return Surface.MODELS
    if path.startswith(_MODELS + b"/"):
        return Surface.MODEL
    if path.startswith(_PREFIX) and path.removesuffix(b"/").lower() not in _ENGINE_ADMIN:
        return Surface.INFERENCE
    return Surface.NOTHING
