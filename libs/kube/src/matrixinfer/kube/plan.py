"""What a reconcile wants done, as plain frozen values.

A planner returns a `Plan`; `apply` is the only code that carries one out. Steps of one wave run
concurrently (bounded, with slow start); a wave begins only when all of the one before succeeded. Status is
written even when a step failed; events are written only after the steps they tell of succeeded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TypeAlias

from matrixinfer.kube.resource import Key, Manifest, Resource

__all__ = ["Apply", "Create", "Delete", "EventType", "Merge", "Note", "Plan", "Scale", "Step", "WriteStatus"]


class EventType(StrEnum):
    """The two types of event that Kubernetes knows."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Create:
    """Create once. An object of that name with the same controller owner counts as success; another owner's
    is reported as `NotOwned` and never touched."""

    resource: Resource
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply with the controller's field manager, taking over conflicting fields."""

    resource: Resource
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete exactly the object that was seen: `uid` is a precondition; already gone counts as success."""

    resource: Resource
    key: Key
    uid: str
    grace_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """Set `spec.replicas` through the `scale` subresource and nothing else."""

    resource: Resource
    key: Key
    replicas: int


@dataclass(frozen=True, slots=True)
class Merge:
    """JSON merge patch of one object, for small marks such as an annotation or a finalizer.

    `uid` is a precondition, so that a namesake made later is never patched. `resource_version`, when given,
    makes it optimistic: needed whenever the patch replaces a list (finalizers).
    """

    resource: Resource
    key: Key
    uid: str
    patch: Manifest
    resource_version: str | None = None


Step: TypeAlias = Create | Apply | Delete | Scale | Merge


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """The whole desired status of one object, written by server-side apply of the `status` subresource.

    `current` is what the cache showed; equal values are not written, so a steady object costs nothing.
    """

    resource: Resource
    key: Key
    uid: str
    desired: Manifest
    current: Manifest


@dataclass(frozen=True, slots=True)
class Note:
    """An event on the reconciled object: `reason` is CamelCase, `message` a sentence."""

    reason: str
    message: str
    type: EventType = EventType.NORMAL


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything one pass wants.

    `why` is the sentence that ends up in the log. `again_after` asks for another look without an event.
    `error` marks a state that no retry can mend (bad spec): the status is written, the key is not retried.
    """

    why: str = ""
    waves: Sequence[Sequence[Step]] = ()
    status: Sequence[WriteStatus] = ()
    notes: Sequence[Note] = ()
    again_after: timedelta | None = None
    error: str | None = field(default=None)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in order, for tests and logs."""
        return tuple(step for wave in self.waves for step in wave)

    @property
    def is_empty(self) -> bool:
        """True when carrying the plan out would write nothing."""
        return not self.steps and not self.notes and all(s.desired == s.current for s in self.status)
