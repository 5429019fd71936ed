"""Events: what happened, told to whoever runs `kubectl describe`.

Owns counting repeats, combining look-alikes, limiting the rate per object, and sending in the background. Refuses to
be waited for: an event that cannot be sent is dropped and counted, never retried against a struggling server.

`Correlator` is the pure part. The trap: a loop that notes the same thing each pass must become one Event object whose
count grows, not a thousand objects in etcd.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from matrixinfer.kube import metrics
from matrixinfer.kube.client import Client
from matrixinfer.kube.errors import ApiError, NotFound
from matrixinfer.kube.plan import Note
from matrixinfer.kube.resource import EVENTS, Key, Resource

__all__ = ["Correlator", "EventRecorder", "ObjectReference", "Series"]

log = structlog.get_logger(__name__)
_MESSAGE_LIMIT: Final = 1024
_COMBINE_AFTER: Final = 10
_COMBINE_WINDOW: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """The object that an event is about."""

    resource: Resource
    key: Key
    uid: str
    resource_version: str = ""


@dataclass(slots=True)
class Series:
    """One Event object, present or to be created; `count` grows with each repeat."""

    reference: ObjectReference
    note: Note
    name: str
    first: datetime
    last: datetime
    count: int = 1
    stored: bool = False


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: datetime


class Correlator:
    """Turns notes into series: repeats raise a count, look-alikes are combined, a flood is cut off.

    Pure but for its memory, which is bounded.
    """

    def __init__(self, *, burst: int = 25, refill_seconds: float = 10.0, memory: int = 4096) -> None:
        self._memory = memory
        self._burst = burst
        self._refill_seconds = refill_seconds
        self._series: OrderedDict[tuple[str, str, str, str], Series] = OrderedDict()
        self._alike: OrderedDict[tuple[str, str, str], tuple[datetime, set[str]]] = OrderedDict()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def correlate(self, reference: ObjectReference, note: Note, now: datetime) -> Series | None:
        """Return the series that the note belongs to, already counted; None when the object has had too many."""
        if not self._take_token(reference.uid, now):
            return None
        message = note.message[:_MESSAGE_LIMIT]
        if self._is_flood_of_variants(reference.uid, note, message, now):
            message = f"(combined from similar events): {message}"[:_MESSAGE_LIMIT]
            identity = (reference.uid, note.type, note.reason, "")
        else:
            identity = (reference.uid, note.type, note.reason, message)
        series = self._series.get(identity)
        combined = Note(note.reason, message, note.type)
        if series is None:
            series = Series(reference, combined, _name(reference, identity, now), now, now)
            self._remember(self._series, identity, series)
            return series
        self._series.move_to_end(identity)
        series.count += 1
        series.last = now
        series.note = combined
        return series

    def forget(self, series: Series, now: datetime) -> None:
        """The server has dropped the Event object (they expire): the next write creates one under a new name."""
        identity = (series.reference.uid, series.note.type, series.note.reason, series.note.message)
        series.name = _name(series.reference, identity, now)
        series.stored = False

    def _take_token(self, uid: str, now: datetime) -> bool:
        bucket = self._buckets.get(uid)
        if bucket is None:
            bucket = _Bucket(float(self._burst), now)
            self._remember(self._buckets, uid, bucket)
        earned = (now - bucket.at).total_seconds() / self._refill_seconds
        bucket.tokens, bucket.at = min(float(self._burst), bucket.tokens + max(0.0, earned)), now
        if bucket.tokens < 1.0:
            return False
        bucket.tokens -= 1.0
        return True

    def _is_flood_of_variants(self, uid: str, note: Note, message: str, now: datetime) -> bool:
        identity = (uid, note.type, note.reason)
        since, messages = self._alike.get(identity, (now, set()))
        if now - since > _COMBINE_WINDOW:
            since, messages = now, set()
        if len(messages) < _COMBINE_AFTER:
            messages.add(message)
        self._remember(self._alike, identity, (since, messages))
        return message not in messages

    def _remember(self, memory: OrderedDict[Any, Any], key: Any, value: Any) -> None:
        memory[key] = value
        memory.move_to_end(key)
        if len(memory) > self._memory:
            memory.popitem(last=False)


class EventRecorder:
    """Sends events in the background while `run` runs."""

    def __init__(
        self,
        client: Client,
        component: str,
        *,
        instance: str = "",
        correlator: Correlator | None = None,
        limit: int = 1000,
        deadline_seconds: float = 5.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._component = component
        self._instance = instance or component
        self._correlator = correlator or Correlator()
        self._limit = limit
        self._deadline_seconds = deadline_seconds
        self._now = now
        self._unsent: dict[str, Series] = {}
        self._wake = asyncio.Event()

    def record(self, reference: ObjectReference, note: Note) -> None:
        """Take in one note; it is sent soon, merged with equal ones that wait."""
        series = self._correlator.correlate(reference, note, self._now())
        if series is None:
            metrics.EVENTS_DROPPED.labels("rate").inc()
            return
        if len(self._unsent) >= self._limit and series.name not in self._unsent:
            metrics.EVENTS_DROPPED.labels("full").inc()
            return
        self._unsent[series.name] = series
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Send everything that waits. Give it a deadline when stopping."""
        while self._unsent:
            name = next(iter(self._unsent))
            series = self._unsent.pop(name)
            try:
                await self._send(series)
            except ApiError as exc:
                metrics.EVENTS_DROPPED.labels("error").inc()
                log.warning("event_not_sent", key=str(series.reference.key), reason=series.note.reason, error=str(exc))

    async def _send(self, series: Series) -> None:
        if series.stored:
            try:
                await self._update(series)
                return
            except NotFound:
                self._correlator.forget(series, self._now())
        # Before the await: a repeat that comes in meanwhile must become an update.
        series.stored = True
        try:
            await self._client.create(EVENTS, self._manifest(series), deadline_seconds=self._deadline_seconds)
        except ApiError:
            series.stored = False
            raise

    async def _update(self, series: Series) -> None:
        patch: dict[str, Any] = {
            "count": series.count,
            "lastTimestamp": _timestamp(series.last),
            "message": series.note.message,
        }
        key = Key(_event_namespace(series.reference), series.name)
        await self._client.merge_patch(EVENTS, key, patch, deadline_seconds=self._deadline_seconds)

    def _manifest(self, series: Series) -> dict[str, Any]:
        reference, note = series.reference, series.note
        involved = {
            "apiVersion": reference.resource.api_version,
            "kind": reference.resource.kind,
            "name": reference.key.name,
            "uid": reference.uid,
        }
        if reference.key.namespace:
            involved["namespace"] = reference.key.namespace
        if reference.resource_version:
            involved["resourceVersion"] = reference.resource_version
        return {
            "metadata": {"name": series.name, "namespace": _event_namespace(reference)},
            "involvedObject": involved,
            "reason": note.reason,
            "message": note.message,
            "type": str(note.type),
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._instance[:128],
            "firstTimestamp": _timestamp(series.first),
            "lastTimestamp": _timestamp(series.last),
            "count": series.count,
        }


def _event_namespace(reference: ObjectReference) -> str:
    # Events about cluster-scoped objects live in `default`, where kubectl looks for them.
    return reference.key.namespace or "default"


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _name(reference: ObjectReference, identity: tuple[str, str, str, str], now: datetime) -> str:
    digest = hashlib.sha256("\0".join((*identity, now.isoformat())).encode()).hexdigest()[:16]
    return f"{reference.key.name[:200]}.{digest}"
