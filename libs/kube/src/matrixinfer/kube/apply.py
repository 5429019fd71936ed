"""Carries a plan out: the only code of a controller that awaits.

Owns the order (waves, then status), how many writes are under way, and what counts as success. Refuses to decide
anything a planner could decide, and to retry: a failed step fails the pass and the queue brings the key back.

Traps: the first create of a large wave may be refused by a quota, and then the other 999 should not be tried (slow
start); a create or delete whose answer was lost may have happened, so "exists with our owner" and "gone" are
successes; a process that was stopped and woken up may still hold a plan, so `may_write` is asked right before every
write.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, assert_never

from matrixinfer.kube.client import Client
from matrixinfer.kube.codec import Identity
from matrixinfer.kube.errors import AlreadyExists, Conflict, KubeError, LeaseLost, NotFound, NotOwned
from matrixinfer.kube.expectations import Written
from matrixinfer.kube.plan import Apply, Create, Delete, Merge, Plan, Scale, Step, WriteStatus
from matrixinfer.kube.resource import Json, Key, Manifest, Resource, controller_uid, key_of
from matrixinfer.kube.store import Store

__all__ = ["Executor", "Explain", "Failure", "Report"]

WRITES_IN_FLIGHT: Final = 50
DEADLINE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A step, or a write of status, that did not succeed."""

    step: Step | WriteStatus
    error: KubeError

    def __str__(self) -> str:
        """One sentence: what was tried and what the server said."""
        return f"{_describe(self.step)} failed: {self.error}"


@dataclass(frozen=True, slots=True)
class Report:
    """What carrying out a plan came to. `complete` is True when every wave was run and nothing failed."""

    written: tuple[Written, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def complete(self) -> bool:
        """True when nothing failed."""
        return not self.failures

    def __add__(self, other: "Report") -> "Report":
        return Report(self.written + other.written, self.failures + other.failures)


Explain = Callable[[Sequence[Failure]], Sequence[WriteStatus]]
"""Says failures in the status: gets them, returns the status to write instead of the plan's."""


class Executor:
    """Carries out plans for one controller."""

    def __init__(
        self,
        client: Client,
        stores_of: Callable[[Resource], Sequence[Store[Any]]],
        *,
        field_manager: str,
        in_flight: asyncio.Semaphore | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        self._client = client
        self._stores_of = stores_of
        self._field_manager = field_manager
        self._in_flight = in_flight or asyncio.Semaphore(WRITES_IN_FLIGHT)
        self._deadline_seconds = deadline_seconds
        self._may_write = may_write

    async def carry_out(self, plan: Plan, explain: Explain | None = None) -> Report:
        """Run the waves, then write the status, which happens even after a failure; never raises for a failed step."""
        report = await self._waves(plan.waves)
        status = explain(report.failures) if report.failures and explain else plan.status
        return report + await self._together([s for s in status if s.desired != s.current], self._write_status)

    async def _waves(self, waves: Sequence[Sequence[Step]]) -> Report:
        report = Report()
        for wave in waves:
            report += await self._wave(wave)
            if report.failures:
                return report
        return report

    async def _wave(self, steps: Sequence[Step]) -> Report:
        """Run the steps in batches of 1, 2, 4, …; the first batch with a failure is the last."""
        report, begun, size = Report(), 0, 1
        while begun < len(steps) and not report.failures:
            report += await self._together(steps[begun : begun + size], self._do)
            begun += size
            size *= 2
        return report

    async def _together(self, steps: Sequence[Any], run: Callable[[Any], Any]) -> Report:
        if not steps:
            return Report()
        if len(steps) == 1:
            results = [await self._attempt(steps[0], run)]
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._attempt(step, run)) for step in steps]
            results = [task.result() for task in tasks]
        if lost := next((result for result in results if isinstance(result, LeaseLost)), None):
            raise lost
        return Report(
            tuple(result for result in results if isinstance(result, Written)),
            tuple(result for result in results if isinstance(result, Failure)),
        )

    async def _attempt(self, step: Any, run: Callable[[Any], Any]) -> Written | Failure | LeaseLost | None:
        async with self._in_flight:
            if not self._may_write():
                # Returned, because raised in a task group it would arrive wrapped and be taken for a bug.
                return LeaseLost("the lease is no longer ours; nothing more is written")
            try:
                written: Written | None = await run(step)
            except KubeError as exc:
                return Failure(step, exc)
            return written

    async def _do(self, step: Step) -> Written | None:
        match step:
            case Create():
                return await self._create(step)
            case Apply():
                return await self._apply(step)
            case Delete():
                return await self._delete(step)
            case Scale():
                return await self._scale(step)
            case Merge():
                return await self._merge(step)
            case _:
                assert_never(step)

    async def _create(self, step: Create) -> Written:
        try:
            created = await self._client.create(
                step.resource,
                step.manifest,
                field_manager=self._field_manager,
                deadline_seconds=self._deadline_seconds,
            )
        except AlreadyExists:
            created = await self._client.get(
                step.resource, key_of(step.manifest), deadline_seconds=self._deadline_seconds
            )
            if controller_uid(created) != controller_uid(step.manifest):
                raise _not_owned(step.resource, created) from None
        return _written(step.resource, created)

    async def _apply(self, step: Apply) -> Written:
        manifest = step.manifest
        if controller := controller_uid(manifest):
            manifest = await self._owned(step.resource, manifest, controller)
        applied = await self._client.apply(
            step.resource, manifest, field_manager=self._field_manager, deadline_seconds=self._deadline_seconds
        )
        return _written(step.resource, applied)

    async def _owned(self, resource: Resource, manifest: Manifest, controller: str) -> Manifest:
        """Return the manifest tied to the object that is there now; raises NotOwned when it has another controller.

        An object that the cache does not have is asked for: an apply would silently take over a stranger's.
        """
        key = key_of(manifest)
        found = self._cached(resource, key)
        if found is None:
            try:
                existing = await self._client.get(resource, key, deadline_seconds=self._deadline_seconds)
            except NotFound:
                return manifest
            if controller_uid(existing) != controller:
                raise _not_owned(resource, existing)
            return _with_uid(manifest, existing["metadata"]["uid"])
        if found.controller_uid != controller:
            owner = f"the controller with uid {found.controller_uid}" if found.controller_uid else "nobody"
            raise NotOwned(f"{resource.kind} {key}", owner)
        return _with_uid(manifest, found.uid)

    def _cached(self, resource: Resource, key: Key) -> Identity | None:
        identities = (store.identity(key) for store in self._stores_of(resource))
        return next((identity for identity in identities if identity is not None), None)

    async def _delete(self, step: Delete) -> Written | None:
        gone = Written(step.resource, step.key, step.uid, deleted=True)
        try:
            deleted = await self._client.delete(
                step.resource,
                step.key,
                uid=step.uid,
                grace_seconds=step.grace_seconds,
                deadline_seconds=self._deadline_seconds,
            )
        except (NotFound, Conflict):
            # Gone, or replaced by a namesake; either way the cache is behind and must catch up before the next plan.
            return gone
        metadata = deleted.get("metadata") or {}
        version = metadata.get("resourceVersion", "") if metadata.get("uid") == step.uid else ""
        return Written(step.resource, step.key, step.uid, version, deleted=True)

    async def _scale(self, step: Scale) -> Written:
        scaled = await self._client.scale(
            step.resource,
            step.key,
            step.replicas,
            field_manager=self._field_manager,
            deadline_seconds=self._deadline_seconds,
        )
        return _written(step.resource, scaled)

    async def _merge(self, step: Merge) -> Written:
        merged = await self._client.merge_patch(
            step.resource,
            step.key,
            _conditioned(step),
            field_manager=self._field_manager,
            deadline_seconds=self._deadline_seconds,
        )
        return _written(step.resource, merged)

    async def _write_status(self, status: WriteStatus) -> Written | None:
        key = status.key
        metadata: dict[str, Json] = {"name": key.name, "uid": status.uid}
        if key.namespace:
            metadata["namespace"] = key.namespace
        try:
            written = await self._client.apply(
                status.resource,
                {"metadata": metadata, "status": dict(status.desired)},
                field_manager=self._field_manager,
                subresource="status",
                deadline_seconds=self._deadline_seconds,
            )
        except NotFound:
            # Deleted meanwhile: there is nobody left to tell.
            return None
        return _written(status.resource, written)


def _conditioned(step: Merge) -> dict[str, Any]:
    patch: dict[str, Any] = dict(step.patch)
    metadata: dict[str, Any] = dict(patch.get("metadata") or {})
    metadata["uid"] = step.uid
    if step.resource_version is not None:
        metadata["resourceVersion"] = step.resource_version
    return {**patch, "metadata": metadata}


def _with_uid(manifest: Manifest, uid: str) -> Manifest:
    metadata: Any = manifest["metadata"]
    return {**manifest, "metadata": {**metadata, "uid": uid}}


def _written(resource: Resource, stored: Mapping[str, Any]) -> Written:
    metadata = stored["metadata"]
    return Written(
        resource,
        key_of(stored),
        metadata.get("uid", ""),
        metadata.get("resourceVersion", ""),
        metadata.get("labels") or {},
    )


def _not_owned(resource: Resource, existing: Mapping[str, Any]) -> NotOwned:
    references = existing["metadata"].get("ownerReferences") or ()
    # The uid too: the owner may be a former object of the same name, whose children are still being cleaned up.
    owner = next((f"{r['kind']} {r['name']} (uid {r['uid']})" for r in references if r.get("controller")), "nobody")
    return NotOwned(f"{resource.kind} {key_of(existing)}", owner)


def _describe(step: Step | WriteStatus) -> str:
    match step:
        case Create() | Apply():
            key = key_of(step.manifest)
        case _:
            key = step.key
    verb = "status of" if isinstance(step, WriteStatus) else type(step).__name__.lower()
    return f"{verb} {step.resource.kind} {key}"
