"""Conditions: how every object tells what is true of it, since when, and why.

Conditions are values; a list of them is never edited, a new one is made. The trap: `lastTransitionTime` moves only
when `status` changes, otherwise a steady object would be written for ever.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, Field, PlainSerializer

from matrixinfer.api.meta import ApiModel

__all__ = [
    "Condition",
    "ConditionStatus",
    "Conditions",
    "Timestamp",
    "find_condition",
    "format_time",
    "is_true",
    "parse_time",
    "set_condition",
]

_TYPE_PATTERN = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
)
_REASON_PATTERN = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"


class ConditionStatus(StrEnum):
    """What is known of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


def format_time(moment: datetime) -> str:
    """Return RFC 3339 in UTC with whole seconds, as Kubernetes writes times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """Return the moment an RFC 3339 text names.

    Raises:
        ValueError: not RFC 3339.
    """
    return datetime.fromisoformat(text)


Timestamp = Annotated[
    datetime,
    BeforeValidator(lambda value: parse_time(value) if isinstance(value, str) else value),
    PlainSerializer(format_time, return_type=str),
]
"""A moment; in JSON RFC 3339 with whole seconds."""


class Condition(ApiModel):
    """One thing that is true, false or unknown of an object."""

    type: Annotated[str, Field(max_length=316, pattern=_TYPE_PATTERN)]
    """What the condition is about, in CamelCase."""
    status: ConditionStatus
    """True, False or Unknown."""
    last_transition_time: Timestamp
    """When `status` last changed."""
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern=_REASON_PATTERN)]
    """Why, as one CamelCase word for programs."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, as a sentence for people."""
    observed_generation: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})] = 0
    """Generation of the spec that this condition speaks of."""


Conditions: TypeAlias = Annotated[
    tuple[Condition, ...],
    Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]
"""The conditions of an object, one of each type."""


def find_condition(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """Return the condition of that type, if there is one."""
    return next((condition for condition in conditions if condition.type == type_), None)


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """True when the condition is there and its status is True."""
    found = find_condition(conditions, type_)
    return found is not None and found.status is ConditionStatus.TRUE


def set_condition(
    conditions: Sequence[Condition],
    type_: str,
    status: ConditionStatus | bool | str,
    reason: str,
    message: str,
    observed_generation: int,
    now: datetime,
) -> list[Condition]:
    """Return the conditions with one replaced, or added at the end.

    `lastTransitionTime` is kept while the status stays the same, so setting what is already true changes nothing.
    """
    wanted = ConditionStatus(str(status))
    before = find_condition(conditions, type_)
    since = (
        before.last_transition_time if before is not None and before.status is wanted else now.replace(microsecond=0)
    )
    made = Condition(
        type=type_,
        status=wanted,
        last_transition_time=since,
        reason=reason,
        message=message,
        observed_generation=observed_generation,
    )
    if before is None:
        return [*conditions, made]
    return [made if condition.type == type_ else condition for condition in conditions]
