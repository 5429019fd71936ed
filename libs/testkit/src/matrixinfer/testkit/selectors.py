"""Label and field selectors in their query-string form."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from matrixinfer.kube.resource import Json
from matrixinfer.testkit.status_errors import bad_request

__all__ = ["Predicate", "field_predicate", "label_predicate"]

Predicate = Callable[[Mapping[str, Json]], bool]
"""Does this object match?"""

_SET = re.compile(r"^(?P<key>\S+)\s+(?P<op>in|notin)\s+\((?P<values>[^)]*)\)$")
_TOP_LEVEL_COMMA = re.compile(r",(?![^(]*\))")

FIELD_PATHS: Mapping[str, tuple[str, ...]] = {
    "metadata.name": ("metadata", "name"),
    "metadata.namespace": ("metadata", "namespace"),
    "spec.nodeName": ("spec", "nodeName"),
    "status.phase": ("status", "phase"),
    "involvedObject.name": ("involvedObject", "name"),
    "involvedObject.kind": ("involvedObject", "kind"),
    "involvedObject.namespace": ("involvedObject", "namespace"),
    "involvedObject.uid": ("involvedObject", "uid"),
    "reason": ("reason",),
    "type": ("type",),
}
"""The fields that can be selected by; the real server knows these and a few more."""


def _requirement(text: str) -> Callable[[Mapping[str, Any]], bool]:
    found = _SET.match(text)
    if found:
        key, values = found["key"], {v.strip() for v in found["values"].split(",")}
        if found["op"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if "!=" in text:
        key, value = (part.strip() for part in text.split("!=", 1))
        return lambda labels: labels.get(key) != value
    if "=" in text:
        key, value = (part.strip() for part in text.replace("==", "=").split("=", 1))
        return lambda labels: labels.get(key) == value
    if text.startswith("!"):
        key = text[1:].strip()
        return lambda labels: key not in labels
    if not re.fullmatch(r"[\w./-]+", text):
        raise bad_request(f'unable to parse requirement: "{text}"')
    return lambda labels: text in labels


def label_predicate(selector: str) -> Predicate | None:
    """Return the test for a label selector, None for the empty one that matches everything."""
    if not selector.strip():
        return None
    requirements = [_requirement(part.strip()) for part in _TOP_LEVEL_COMMA.split(selector) if part.strip()]

    def matches(manifest: Mapping[str, Any]) -> bool:
        labels = manifest.get("metadata", {}).get("labels") or {}
        return all(requirement(labels) for requirement in requirements)

    return matches


def _field(manifest: Mapping[str, Any], path: tuple[str, ...]) -> str:
    value: Any = manifest
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)


def field_predicate(selector: str) -> Predicate | None:
    """Return the test for a field selector, None for the empty one; 400 for a field nobody can select by."""
    if not selector.strip():
        return None
    wanted: list[tuple[tuple[str, ...], str, bool]] = []
    for part in selector.split(","):
        negated = "!=" in part
        name, value = part.split("!=" if negated else "=", 1) if "=" in part else (part, "")
        path = FIELD_PATHS.get(name.strip())
        if path is None:
            raise bad_request(
                f'Unable to find "{name}" that match label selector "", field selector "{selector}": '
                f"field label not supported: {name}"
            )
        wanted.append((path, value.lstrip("=").strip(), negated))
    return lambda manifest: all((_field(manifest, path) == value) is not negated for path, value, negated in wanted)
