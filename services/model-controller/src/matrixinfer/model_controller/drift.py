"""Whether an object still is what we rendered.

Pure. An object carries the revision of what was last applied; it has drifted when that differs (we want something
else) or when a field that we set no longer holds (somebody changed it). Fields that we do not set are others' business.

The trap: a comparison that is too strict writes for ever. Elements of keyed lists are looked up by key, so what
somebody adds to such a list is no drift, because an apply could not remove it either.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matrixinfer.api import hashing, names
from matrixinfer.kube.resource import Manifest

__all__ = ["has_drifted", "holds", "with_revision"]

_KEYS: Final = ("name", "uid", "type", "mountPath", "containerPort", "topologyKey", "key")
"""Members by which the elements of a list are told apart, the first that all elements have."""
_ORDERED: Final = frozenset({"rules", "targetModels", "fallbacks"})
"""Lists whose order is their meaning: an apply replaces them whole, so an element too many is drift."""


def with_revision(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest with the label that names the revision of everything else in it."""
    made: dict[str, Any] = {**manifest, "metadata": dict(_object(manifest["metadata"]))}
    made["metadata"]["labels"] = {
        **_object(made["metadata"].get("labels") or {}),
        names.MODEL_REVISION: hashing.revision(dict(manifest)),
    }
    return made


def has_drifted(live: Manifest | None, wanted: Manifest) -> bool:
    """True when `wanted` must be applied: the object is gone, or one of our fields does not hold."""
    return live is None or not holds(live, wanted)


def holds(live: Any, wanted: Any) -> bool:
    """True when everything in `wanted` is in `live`."""
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(
            name in live and (_same_order(live[name], member) if name in _ORDERED else holds(live[name], member))
            for name, member in wanted.items()
        )
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return isinstance(live, Sequence) and not isinstance(live, str) and _list_holds(live, wanted)
    return bool(live == wanted) and isinstance(live, bool) == isinstance(wanted, bool)


def _list_holds(live: Sequence[Any], wanted: Sequence[Any]) -> bool:
    key = _key_of(wanted)
    if key is None:
        return _same_order(live, wanted)
    by_key = {element[key]: element for element in live if isinstance(element, Mapping) and key in element}
    return all(element[key] in by_key and holds(by_key[element[key]], element) for element in wanted)


def _same_order(live: Any, wanted: Any) -> bool:
    if not isinstance(live, Sequence) or isinstance(live, str):
        return False
    return len(live) == len(wanted) and all(holds(found, element) for found, element in zip(live, wanted, strict=True))


def _key_of(elements: Sequence[Any]) -> str | None:
    if not elements or not all(isinstance(element, Mapping) for element in elements):
        return None
    for key in _KEYS:
        values = [element.get(key) for element in elements]
        if all(isinstance(value, str | int) for value in values) and len(set(values)) == len(values):
            return key
    return None


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("metadata and labels are objects")
    return value
