"""Leader election on a Lease.

`decide` is pure; `Elector` talks to the API and keeps the clock. Safety rests on three rules. (1) Time is monotonic
and local: others count `lease_seconds` from when they *saw* the lease change, the holder counts
`renew_deadline_seconds` from before it *sent* its last successful renewal, so the holder always stops first;
timestamps in the Lease are for people. (2) Every call has a deadline, and `renew_deadline + one request < lease` is
checked at start-up. (3) Work and renewal are one task group: a lost lease cancels the work, work that ends or crashes
ends the renewal. For a process that was paused and has not yet noticed, `holds()` is asked before each write.

A lost lease raises `LeaseLost` and the process must exit: what it had in memory is no longer its to use.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias, assert_never

import structlog

from matrixinfer.kube import metrics
from matrixinfer.kube.client import Client
from matrixinfer.kube.errors import AlreadyExists, ApiError, ConfigError, Conflict, LeaseLost, NotFound
from matrixinfer.kube.resource import LEASES, Key

__all__ = [
    "Decision",
    "ElectionSettings",
    "Elector",
    "Lease",
    "Make",
    "Observation",
    "Renew",
    "Take",
    "Wait",
    "decide",
]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ElectionSettings:
    """Which lease, who we are, and how long things may take.

    `identity` is made unique per process, so that a restarted pod does not mistake its predecessor for itself.
    """

    name: str
    namespace: str
    identity: str
    lease_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0
    request_seconds: float = 4.0

    def check(self) -> None:
        """Raise ConfigError unless a holder is sure to stop before others may start."""
        if self.renew_deadline_seconds + self.request_seconds >= self.lease_seconds:
            raise ConfigError(
                f"renew_deadline_seconds ({self.renew_deadline_seconds:g}) plus request_seconds"
                f" ({self.request_seconds:g}) must be less than lease_seconds ({self.lease_seconds:g})"
            )
        if self.retry_seconds + self.request_seconds > self.renew_deadline_seconds:
            raise ConfigError(
                f"retry_seconds ({self.retry_seconds:g}) plus request_seconds ({self.request_seconds:g}) must not be"
                f" more than renew_deadline_seconds ({self.renew_deadline_seconds:g}), or one failed renewal loses it"
            )


@dataclass(frozen=True, slots=True)
class Lease:
    """What the Lease object says; an empty `holder` means that it was released."""

    holder: str
    seconds: float
    transitions: int
    resource_version: str
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Observation:
    """A lease as read, and the monotonic time at which this version of it was first seen.

    `vanished` means that the object was deleted since; its holder may not know that yet.
    """

    lease: Lease
    since: float
    vanished: bool = False


@dataclass(frozen=True, slots=True)
class Make:
    """There is no lease: create it with us as holder."""


@dataclass(frozen=True, slots=True)
class Take:
    """The lease is free or has expired: write us into it."""

    transitions: int


@dataclass(frozen=True, slots=True)
class Renew:
    """The lease is ours: move its time on."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody else holds it, for at most this long unless renewed."""

    seconds: float


Decision: TypeAlias = Make | Take | Renew | Wait


def decide(seen: Observation | None, identity: str, now: float, *, lease_seconds: float) -> Decision:
    """Return what a candidate does; `now` is on the clock of `seen.since`.

    The holder's own `leaseDurationSeconds` counts, or `lease_seconds` when that is longer or missing.
    """
    if seen is None:
        return Make()
    lease = seen.lease
    expires = seen.since + max(lease.seconds, lease_seconds)
    is_free = not lease.holder or now >= expires
    if seen.vanished:
        return Make() if is_free or lease.holder == identity else Wait(expires - now)
    if lease.holder == identity:
        return Renew()
    if is_free:
        return Take(lease.transitions + 1)
    return Wait(expires - now)


class Elector:
    """Holds the lease for the time of some work."""

    def __init__(
        self,
        client: Client,
        settings: ElectionSettings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        draw: Callable[[], float] = random.random,
        unique: Callable[[], str] = lambda: uuid.uuid4().hex[:12],
    ) -> None:
        settings.check()
        self.identity = f"{settings.identity}_{unique()}"
        self._client = client
        self._settings = settings
        self._monotonic = monotonic
        self._now = now
        self._draw = draw
        self._key = Key(settings.namespace, settings.name)
        self._seen: Observation | None = None
        self._valid_until = float("-inf")
        self._master = metrics.LEADER.labels(settings.name)
        self._master.set(0)

    def holds(self) -> bool:
        """True while the lease is surely ours. Cheap; ask right before each write."""
        return self._monotonic() < self._valid_until

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the lease, do the work under it, release it.

        Returns when the work returns. Raises LeaseLost when the lease is lost first, after the work was cancelled; a
        crash of the work releases the lease and is raised. Cancel it to give up waiting.
        """
        await self._acquire()
        self._master.set(1)
        log.info("lease_acquired", lease=str(self._key), identity=self.identity)
        try:
            await self._work_and_renew(work)
        except BaseException as exc:
            if not isinstance(exc, LeaseLost):
                await self._release()
            raise
        else:
            await self._release()
        finally:
            self._valid_until = float("-inf")
            self._master.set(0)

    async def _acquire(self) -> None:
        while True:
            try:
                if await self._try():
                    return
            except ApiError as exc:
                log.warning("lease_unreadable", lease=str(self._key), error=str(exc))
            # Spread out, so that candidates do not all write at the moment of expiry.
            await asyncio.sleep(self._settings.retry_seconds * (0.75 + 0.5 * self._draw()))

    async def _work_and_renew(self, work: Callable[[], Awaitable[None]]) -> None:
        lost: list[LeaseLost] = []

        async def renew() -> None:
            lost.append(await self._keep())
            working.cancel()

        async def do() -> None:
            await work()

        try:
            async with asyncio.TaskGroup() as group:
                working = group.create_task(do(), name="leading")
                renewing = group.create_task(renew(), name="renewing")
                await asyncio.wait({working})
                renewing.cancel()
        except BaseExceptionGroup as exc:
            if lost:
                raise lost[0] from exc
            raise _single(exc) from None
        if lost:
            raise lost[0]

    async def _keep(self) -> LeaseLost:
        """Renew until the lease is lost; return why."""
        while True:
            await self._sleep_until_next()
            if not self.holds():
                seconds = self._settings.renew_deadline_seconds
                return LeaseLost(f"lease {self._key} could not be renewed for {seconds:g} s")
            try:
                async with asyncio.timeout(max(0.0, self._valid_until - self._monotonic())):
                    if not await self._try():
                        holder = self._seen.lease.holder if self._seen else ""
                        return LeaseLost(f"lease {self._key} went to {holder or 'nobody'}")
            except (ApiError, TimeoutError) as exc:
                log.warning("lease_not_renewed", lease=str(self._key), error=str(exc) or "deadline exceeded")

    async def _sleep_until_next(self) -> None:
        left = self._valid_until - self._monotonic()
        await asyncio.sleep(max(0.0, min(self._settings.retry_seconds, left)))

    async def _try(self) -> bool:
        """Read if needed, decide, write; True when the lease is ours afterwards."""
        holding = self.holds()
        if not holding or self._seen is None:
            await self._read()
        # A second time after a conflict: somebody wrote since we read, perhaps a request of ours whose answer was lost.
        for _ in range(2):
            decision = decide(self._seen, self.identity, self._monotonic(), lease_seconds=self._settings.lease_seconds)
            if isinstance(decision, Wait) or (holding and not isinstance(decision, Renew)):
                return False
            try:
                await self._write(decision)
            except (AlreadyExists, Conflict, NotFound):
                await self._read()
            else:
                return True
        return False

    async def _read(self) -> None:
        try:
            manifest = await self._client.get(LEASES, self._key, deadline_seconds=self._settings.request_seconds)
        except NotFound:
            if self._seen is not None:
                self._seen = replace(self._seen, vanished=True)
            return
        self._note(manifest)

    async def _write(self, decision: Make | Take | Renew) -> None:
        sent = self._monotonic()
        manifest = self._manifest(decision)
        request_seconds = self._settings.request_seconds
        if isinstance(decision, Make):
            stored = await self._client.create(LEASES, manifest, deadline_seconds=request_seconds)
        else:
            stored = await self._client.replace(LEASES, manifest, deadline_seconds=request_seconds)
        self._note(stored)
        self._valid_until = sent + self._settings.renew_deadline_seconds

    def _manifest(self, decision: Make | Take | Renew) -> dict[str, Any]:
        stamp = _microtime(self._now())
        spec: dict[str, Any] = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._settings.lease_seconds)),
            "renewTime": stamp,
        }
        match decision:
            case Make():
                return {
                    "metadata": {"name": self._key.name, "namespace": self._key.namespace},
                    "spec": {**spec, "acquireTime": stamp, "leaseTransitions": 0},
                }
            case Take(transitions):
                return self._amended({**spec, "acquireTime": stamp, "leaseTransitions": transitions})
            case Renew():
                return self._amended(spec)
            case _:
                assert_never(decision)

    def _amended(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Return the lease as it was read with a new spec; its resourceVersion makes the write a precondition."""
        if self._seen is None:
            raise LeaseLost(f"lease {self._key} was never read")
        manifest = self._seen.lease.manifest
        return {**manifest, "spec": {**(manifest.get("spec") or {}), **spec}}

    def _note(self, manifest: Mapping[str, Any]) -> None:
        spec = manifest.get("spec") or {}
        lease = Lease(
            spec.get("holderIdentity") or "",
            float(spec.get("leaseDurationSeconds") or 0),
            int(spec.get("leaseTransitions") or 0),
            manifest["metadata"].get("resourceVersion", ""),
            manifest,
        )
        if self._seen is None or self._seen.vanished or self._seen.lease.resource_version != lease.resource_version:
            self._seen = Observation(lease, self._monotonic())

    async def _release(self) -> None:
        """Give the lease back, so that a follower need not wait; whatever goes wrong, it expires by itself."""
        self._valid_until = float("-inf")
        if self._seen is None or self._seen.lease.holder != self.identity:
            return
        spec = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _microtime(self._now())}
        with suppress(ApiError, TimeoutError):
            await self._client.replace(LEASES, self._amended(spec), deadline_seconds=self._settings.request_seconds)
            log.info("lease_released", lease=str(self._key))


def _microtime(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception in the group, however deep, or the group itself."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found
