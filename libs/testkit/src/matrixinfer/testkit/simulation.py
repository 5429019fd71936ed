"""One controller in a simulated cluster: its process, its plans carried out write by write, its crashes.

Carries plans out as `matrixinfer.kube.apply` does (waves, tolerated outcomes, status after failure, own writes
awaited), but synchronously and one write at a time, so that a test can look at the world after each and kill the
controller at any.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any, Protocol

from matrixinfer.kube.plan import Apply, Create, Delete, Merge, Plan, Scale, Step, WriteStatus
from matrixinfer.kube.resource import Key, Manifest, Resource
from matrixinfer.testkit.memory import ConnectionCut, MemoryApi, StatusError
from matrixinfer.testkit.records import Object
from matrixinfer.testkit.view import View

__all__ = ["Kill", "Moment", "Pass", "Planner", "Process", "doomed_by"]


class Planner(Protocol):
    """A reconciler: `observe` reads stores, `plan` is pure."""

    def observe(self, key: Key) -> Any | None:
        """What there is to plan from; None when the object is gone."""
        ...

    def plan(self, seen: Any, now: datetime) -> Plan:
        """What to do about it."""
        ...


@dataclass(frozen=True, slots=True)
class Moment:
    """The world right after one write of the controller; `before` and `after` are the API server's state.

    `fresh` is True when the plan was made from a cache that had seen everything.
    """

    before: MemoryApi
    after: MemoryApi
    key: Key
    plan: Plan
    write: Step | WriteStatus
    fresh: bool
    now: datetime


@dataclass(frozen=True, slots=True)
class Kill:
    """The controller dies at its n-th write of a pass (from 0), before or after the write takes effect."""

    write: int
    after_effect: bool


@dataclass(slots=True)
class Pass:
    """What one pass over a key did."""

    plan: Plan | None = None
    writes: int = 0
    failures: list[str] = field(default_factory=list)
    killed: bool = False


@dataclass(frozen=True, slots=True)
class _Expected:
    resource: Resource
    version: int


def _controller_uid(manifest: Mapping[str, Any]) -> str:
    references = manifest["metadata"].get("ownerReferences", ())
    return next((str(reference["uid"]) for reference in references if reference.get("controller")), "")


def _key_of(resource: Resource, manifest: Mapping[str, Any]) -> Key:
    meta = manifest["metadata"]
    return Key(str(meta.get("namespace", "default")) if resource.namespaced else "", str(meta["name"]))


class Process:
    """One life of the controller: a view, a planner on it, and the writes it still waits to see."""

    def __init__(
        self,
        api: MemoryApi,
        planner: Callable[[View], Planner],
        *,
        field_manager: str,
        on_write: Callable[[Moment], None] = lambda _moment: None,
    ) -> None:
        self.api = api
        self.view = View(api)
        self.planner = planner(self.view)
        self.field_manager = field_manager
        self._on_write = on_write
        self._expected: dict[Key, list[_Expected]] = {}

    def is_waiting(self, key: Key) -> bool:
        """True while the view has not shown the key's own writes."""
        unmet = [expected for expected in self._expected.get(key, ()) if not self._is_met(expected)]
        self._expected[key] = unmet
        return bool(unmet)

    def _is_met(self, expected: _Expected) -> bool:
        stores = self.view.stores_of(expected.resource)
        return all(store.high_water >= expected.version for store in stores)

    def plan(self, key: Key) -> Plan | None:
        """Plan the key from the present view; None when the object is gone."""
        seen = self.planner.observe(key)
        return None if seen is None else self.planner.plan(seen, self.api.now())

    def reconcile(self, key: Key, *, kill: Kill | None = None, rng: Random | None = None) -> Pass:
        """Plan and carry out; with `kill`, die at that write. Writes of a wave happen in the order that `rng` deals."""
        done = Pass(self.plan(key))
        if done.plan is None:
            return done
        fresh = self.view.is_fresh
        try:
            self._waves(key, done, kill, rng, fresh=fresh)
            for status in done.plan.status:
                if status.desired != status.current:
                    self._write(key, done, status, kill, fresh=fresh)
        except ConnectionCut:
            done.killed = True
        return done

    def _waves(self, key: Key, done: Pass, kill: Kill | None, rng: Random | None, *, fresh: bool) -> None:
        for wave in done.plan.waves if done.plan else ():
            steps = list(wave)
            if rng is not None:
                rng.shuffle(steps)
            for step in steps:
                self._write(key, done, step, kill, fresh=fresh)
            if done.failures:
                return

    def _write(self, key: Key, done: Pass, write: Step | WriteStatus, kill: Kill | None, *, fresh: bool) -> None:
        dies_here = kill is not None and kill.write == done.writes
        if dies_here and kill is not None and not kill.after_effect:
            raise ConnectionCut("killed before the write")
        before = self.api.fork()
        first = self.api.resource_version
        done.writes += 1
        try:
            self._carry_out(write)
        except StatusError as refusal:
            done.failures.append(f"{type(write).__name__} was refused: {refusal.message}")
        self._expect(key, write.resource, first)
        assert done.plan is not None
        self._on_write(Moment(before, self.api, key, done.plan, write, fresh, self.api.now()))
        if dies_here:
            raise ConnectionCut("killed after the write")

    def _expect(self, key: Key, resource: Resource, first: int) -> None:
        if self.api.resource_version == first:
            return
        self._expected.setdefault(key, []).append(_Expected(resource, self.api.resource_version))

    def _carry_out(self, write: Step | WriteStatus) -> None:
        match write:
            case Create():
                self._create(write)
            case Apply():
                self._check_owner(write.resource, write.manifest)
                self.api.apply(write.resource, write.manifest, field_manager=self.field_manager, force=True)
            case Delete():
                self._delete(write)
            case Scale():
                self.api.scale(write.resource, write.key, write.replicas, field_manager=self.field_manager)
            case Merge():
                self._merge(write)
            case WriteStatus():
                self._status(write)

    def _check_owner(self, resource: Resource, manifest: Manifest) -> None:
        wanted = _controller_uid(manifest)
        key = _key_of(resource, manifest)
        existing = self.api.find(resource, key)
        if wanted and existing is not None and _controller_uid(existing) != wanted:
            raise StatusError(409, "NotOwned", f"{resource.kind} {key} belongs to someone else")

    def _create(self, step: Create) -> None:
        try:
            self.api.create(step.resource, step.manifest, field_manager=self.field_manager)
        except StatusError as refusal:
            if refusal.reason != "AlreadyExists":
                raise
            self._check_owner(step.resource, step.manifest)

    def _delete(self, step: Delete) -> None:
        try:
            self.api.delete(
                step.resource,
                step.key,
                uid=step.uid,
                grace_seconds=step.grace_seconds,
                field_manager=self.field_manager,
            )
        except StatusError as refusal:
            if refusal.code not in (404, 409):
                raise

    def _merge(self, step: Merge) -> None:
        given = step.patch.get("metadata")
        meta: Object = {**(given if isinstance(given, Mapping) else {}), "uid": step.uid}
        if step.resource_version is not None:
            meta["resourceVersion"] = step.resource_version
        patch = {**step.patch, "metadata": meta}
        try:
            self.api.merge_patch(step.resource, step.key, patch, field_manager=self.field_manager)
        except StatusError as refusal:
            if refusal.code != 404:
                raise

    def _status(self, write: WriteStatus) -> None:
        meta = {"name": write.key.name, "namespace": write.key.namespace, "uid": write.uid}
        manifest: Object = {"metadata": meta, "status": dict(write.desired)}
        try:
            self.api.apply(write.resource, manifest, field_manager=self.field_manager, force=True, subresource="status")
        except StatusError as refusal:
            if refusal.code != 404:
                raise


def doomed_by(plan: Plan | None) -> Iterable[Delete]:
    """The deletions of a plan."""
    steps: Sequence[Step] = plan.steps if plan is not None else ()
    return [step for step in steps if isinstance(step, Delete)]
