"""Which paths the gateway answers, forwards or refuses. Pure; paths are percent-decoded bytes without the query."""

from enum import StrEnum
from functools import lru_cache

from matrixinfer.engines.catalog import ENGINES

__all__ = [
    "Surface",
    "allowed_methods",
    "is_anthropic",
    "is_generation",
    "listed_model",
    "makes_object",
    "stored_object",
    "surface",
]

_PREFIX = b"/v1/"
_MODELS = b"/v1/models"
_RESPONSES = b"/v1/responses"
_MESSAGES = b"/v1/messages"

# Where an answer is made of tokens, and a prompt is kept by engines.
_GENERATIONS = frozenset({b"/v1/chat/completions", b"/v1/completions", _RESPONSES, _MESSAGES})

# Paths that engines have without /v1 and that clients use so.
_PLAIN = frozenset(
    {b"/tokenize", b"/detokenize", b"/rerank", b"/v2/rerank", b"/score", b"/classify", b"/pooling", b"/v2/embed"}
)

# Engines offer these beside inference. They change what a pod serves: the controllers' to call, not a client's.
_ENGINE_ADMIN = frozenset(
    path.encode()
    for engine in ENGINES.values()
    if engine.lora
    for path in (engine.lora.load_path, engine.lora.unload_path)
)

# Below /v1/responses, but no name of a stored response: these carry a body with `model`.
_NOT_STORED = frozenset({b"compact", b"input_tokens"})


class Surface(StrEnum):
    """What a path is to the gateway."""

    INFERENCE = "inference"
    STORED = "stored"
    """An object that one engine keeps: only that engine can answer."""
    MODELS = "models"
    MODEL = "model"
    HEALTH = "health"
    READY = "ready"
    MALFORMED = "malformed"
    NOTHING = "nothing"


_REMEMBERED_BYTES = 256

_METHODS = {Surface.INFERENCE: ("POST",), Surface.STORED: ("GET", "POST", "DELETE")}


def surface(path: bytes) -> Surface:
    """Classify a path. Dot segments, empty segments and control bytes are malformed: peers disagree about them."""
    return _remembered(path) if len(path) <= _REMEMBERED_BYTES else _classified(path)


def _classified(path: bytes) -> Surface:
    bare = path.removesuffix(b"/")
    segments = bare.split(b"/")[1:]
    if any(s in (b"", b".", b"..") for s in segments) or any(c < 0x20 or c in b"\\\x7f" for c in path):
        return Surface.MALFORMED if path.startswith(b"/") and path != b"/" else Surface.NOTHING
    if path == b"/healthz":
        return Surface.HEALTH
    if path == b"/readyz":
        return Surface.READY
    if bare == _MODELS:
        return Surface.MODELS
    if path.startswith(_MODELS + b"/"):
        return Surface.MODEL
    if stored_object(path):
        return Surface.STORED
    if (path.startswith(_PREFIX) and bare.lower() not in _ENGINE_ADMIN) or path in _PLAIN:
        return Surface.INFERENCE
    return Surface.NOTHING


# Clients ask for a handful of short paths; what a stranger makes up goes as it came.
_remembered = lru_cache(maxsize=1024)(_classified)


def allowed_methods(kind: Surface) -> tuple[str, ...]:
    """Return the methods that a path of this kind takes, besides OPTIONS."""
    return _METHODS.get(kind, ("GET", "HEAD"))


def listed_model(path: bytes) -> str:
    """Return the model that a path of the kind MODEL names; names may hold slashes."""
    return path[len(_MODELS) + 1 :].decode(errors="replace")


def makes_object(path: bytes) -> bool:
    """Whether an answer to this path may name a new object that its engine keeps."""
    return path.removesuffix(b"/") == _RESPONSES


def stored_object(path: bytes) -> str:
    """Return the id of the stored object that a path names; empty when it names none."""
    if not path.startswith(_RESPONSES + b"/"):
        return ""
    name = path[len(_RESPONSES) + 1 :].partition(b"/")[0]
    return "" if name in _NOT_STORED else name.decode(errors="replace")


def is_generation(path: bytes) -> bool:
    """Whether answers on this path are made of tokens. Embeddings and their like are computed whole."""
    return path in _GENERATIONS


def is_anthropic(path: bytes) -> bool:
    """Whether clients of this path speak Anthropic's dialect."""
    return path == _MESSAGES or path.startswith(_MESSAGES + b"/")
