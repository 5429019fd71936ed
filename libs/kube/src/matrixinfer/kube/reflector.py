"""Keeps one store equal to the API server: list, then watch, for ever.

Owns the resourceVersion and every way in which a watch can end. A broken or silent watch is opened again where it
was; only 410 and the first start cost a list, whose difference to the store is told to listeners as if it had been
watched.

Traps: a half-open connection looks like a quiet cluster, hence the inactivity timeout (the server sends a bookmark
about once a minute); an object that cannot be decoded must not stop the others; a watch that ends at once must not
become a busy loop.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final, Generic, NoReturn, TypeVar

import msgspec
import structlog

from matrixinfer.kube import metrics
from matrixinfer.kube.client import Client
from matrixinfer.kube.codec import Meta
from matrixinfer.kube.errors import ApiError, Gone, NotFound
from matrixinfer.kube.queue import Backoff
from matrixinfer.kube.resource import Key
from matrixinfer.kube.store import Store
from matrixinfer.kube.watch import BOOKMARK, DELETED, WatchEvent

__all__ = ["Reflector"]

T = TypeVar("T")
log = structlog.get_logger(__name__)
_BACKOFF: Final = Backoff(base_seconds=0.2, cap_seconds=30.0)
_ABSENT_RETRY_SECONDS: Final = 60.0


class _Headed(msgspec.Struct):
    metadata: Meta


_decode_head = msgspec.json.Decoder(_Headed).decode


class Reflector(Generic[T]):
    """One list-and-watch that feeds one store."""

    def __init__(
        self,
        client: Client,
        store: Store[T],
        *,
        field_selector: str = "",
        optional: bool = False,
        page_size: int = 500,
        inactivity_seconds: float = 120.0,
        watch_seconds: int = 300,
        backoff: Backoff = _BACKOFF,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.store = store
        self.listed = asyncio.Event()
        self._client = client
        self._field_selector = field_selector
        self._optional = optional
        self._page_size = page_size
        self._inactivity_seconds = inactivity_seconds
        self._watch_seconds = watch_seconds
        self._backoff = backoff
        self._draw = draw
        self._name = store.resource.plural
        self._size = metrics.CACHED_OBJECTS.labels(self._name)

    async def run(self) -> NoReturn:
        """Follow the server until cancelled; every failure is logged, counted and retried with a back-off."""
        failures = 0
        while True:
            try:
                version = await self._list()
                failures = 0
                await self._follow(version)
            except NotFound as exc:
                failures += 1
                await self._wait_for_resource(exc, failures)
            except ApiError as exc:
                failures += 1
                await self._pause("list_failed", exc, failures)

    async def _list(self) -> str:
        store = self.store
        values: list[T] = []
        kept: list[Key] = []
        version = ""
        async for page in self._client.pages(
            store.resource,
            store.namespace,
            label_selector=store.label_selector,
            field_selector=self._field_selector,
            page_size=self._page_size,
        ):
            for raw in page.items:
                value = self._decode(raw)
                if value is None:
                    kept.extend(_key_of_raw(raw))
                else:
                    values.append(value)
            version = page.resource_version
        store.replace(values, version, keep=kept)
        self._size.set(len(store))
        self.listed.set()
        return version

    async def _follow(self, version: str) -> None:
        """Watch from `version` on, again and again; returns when only a new list helps."""
        failures = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                version, why = await self._watch_once(version)
                error: ApiError | None = None
            except Gone:
                self._restarted("expired")
                return
            except NotFound:
                raise
            except ApiError as exc:
                why, error = ("dropped", exc) if exc.status == 0 else ("error", exc)
                version = self._seen or version
            self._restarted(why)
            lived = asyncio.get_running_loop().time() - began
            failures = failures + 1 if error is not None or lived < 1.0 else 0
            if error is not None and error.status not in (0, 429) and error.status < 500:
                raise error
            if failures:
                await self._pause("watch_failed", error, failures)

    _seen: str = ""

    async def _watch_once(self, version: str) -> tuple[str, str]:
        """Take in events until the watch ends; return where it ended and why."""
        self._seen = version
        store = self.store
        async with self._client.watch(
            store.resource,
            store.namespace,
            resource_version=version,
            label_selector=store.label_selector,
            field_selector=self._field_selector,
            # Spread out, so that many watches opened together do not all return together.
            timeout_seconds=int(self._watch_seconds * (1.0 + self._draw())),
        ) as events:
            while True:
                try:
                    async with asyncio.timeout(self._inactivity_seconds):
                        event = await anext(events, None)
                except TimeoutError:
                    return self._seen, "inactive"
                if event is None:
                    return self._seen, "ended"
                self._take(event)
                if event.resource_version:
                    self._seen = event.resource_version

    def _take(self, event: WatchEvent) -> None:
        metrics.WATCH_EVENTS.labels(self._name, event.type).inc()
        store = self.store
        if event.type == BOOKMARK:
            store.advance(event.resource_version)
            return
        if event.type == DELETED:
            for key in _key_of_raw(event.raw):
                store.remove(key)
            store.advance(event.resource_version)
        elif (value := self._decode(event.raw)) is not None:
            store.put(value)
        else:
            # It was seen, if not understood: nobody need wait for it.
            store.advance(event.resource_version)
        self._size.set(len(store))

    def _decode(self, raw: bytes) -> T | None:
        try:
            return self.store.projection.decode(raw)
        # Whatever a projection raises concerns one object; the others must go on.
        except Exception as exc:  # noqa: BLE001
            metrics.UNDECODABLE.labels(self._name).inc()
            keys = [str(key) for key in _key_of_raw(raw)]
            log.warning("object_undecodable", resource=self._name, keys=keys, error=str(exc)[:500])
            return None

    async def _wait_for_resource(self, error: NotFound, failures: int) -> None:
        if not self._optional:
            await self._pause("resource_not_served", error, failures)
            return
        self.store.replace((), "")
        self.listed.set()
        await asyncio.sleep(_ABSENT_RETRY_SECONDS * (1.0 - 0.25 * self._draw()))

    async def _pause(self, what: str, error: ApiError | None, failures: int) -> None:
        seconds = self._backoff.delay(failures, self._draw())
        if error is not None:
            seconds = max(seconds, error.retry_after or 0.0)
            log.warning(what, resource=self._name, error=str(error), again_in_seconds=round(seconds, 2))
        await asyncio.sleep(seconds)

    def _restarted(self, why: str) -> None:
        metrics.WATCH_RESTARTS.labels(self._name, why).inc()


def _key_of_raw(raw: bytes) -> list[Key]:
    """Return the object's key, read without its projection; empty when it has no readable metadata."""
    try:
        meta: Any = _decode_head(raw).metadata
    except msgspec.MsgspecError:
        return []
    return [Key(meta.namespace, meta.name)]
