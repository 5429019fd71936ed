"""The properties that every planner has, as tests to instantiate for one.

A world is an in-memory API server with a simulated scheduler and kubelet, users who edit, and one controller whose
caches lag and who dies now and then. Hypothesis deals the history; afterwards the world is left in peace and must
converge.

The trap of such suites is a property that is vacuous: `PlannerWorld.settled` must compare the world with what was
asked for, and `check` must be able to fail.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, partial
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from matrixinfer.kube.plan import Delete, Plan
from matrixinfer.kube.resource import PODS, Key, Manifest, Resource, key_of
from matrixinfer.testkit.clock import ManualClock
from matrixinfer.testkit.memory import ConnectionCut, MemoryApi, StatusError
from matrixinfer.testkit.simulated import SimulatedCluster
from matrixinfer.testkit.simulation import Kill, Moment, Pass, Planner, Process, doomed_by
from matrixinfer.testkit.view import View

__all__ = ["Edit", "History", "Moment", "Planner", "PlannerWorld", "View", "planner_suite"]

Edit = Callable[[MemoryApi], None]
"""Something a user does; refusals of the API server are part of life and ignored."""

Start = Sequence[tuple[Resource, Manifest]]
"""What exists in the beginning."""


def _nothing(_api: MemoryApi) -> None:
    """Prepare nothing."""


def _always_safe(_moment: Moment) -> None:
    """Accept every moment."""


def _create(resource: Resource, manifest: Manifest, api: MemoryApi) -> None:
    api.create(resource, manifest, field_manager="user")


def _stands(api: MemoryApi, resource: Resource, manifest: Manifest) -> bool:
    key = key_of(manifest)
    where = Key(key.namespace or "default", key.name) if resource.namespaced else key
    return api.find(resource, where) is not None


def _never(_api: MemoryApi, _step: Delete) -> bool:
    return False


@dataclass(frozen=True)
class PlannerWorld:
    """What the suite has to know of one controller."""

    name: str
    primary: Resource
    """Keys are the keys of this kind."""
    start: st.SearchStrategy[Start]
    planner: Callable[[View], Planner]
    """Makes a fresh planner (a restarted process) on a view; declares its watches with `view.watch`."""
    settled: Callable[[MemoryApi], str]
    """"" when the world is what its objects ask for, else a sentence that says why not."""
    field_manager: str = "controller"
    edits: st.SearchStrategy[Edit] = field(default_factory=lambda: st.just(_nothing))
    check: Callable[[Moment], None] = _always_safe
    """Raises AssertionError when a write left the world unsafe. Called after every write of the controller."""
    prepare: Callable[[MemoryApi], None] = _nothing
    """Registers kinds, creates namespaces and whatever stands around."""
    cluster: Callable[[MemoryApi], SimulatedCluster] = SimulatedCluster
    may_destroy: Callable[[MemoryApi, Delete], bool] = _never
    """Excuses a deletion by a stale cache of something that a fresh one would have kept."""
    disturb_children: bool = True
    """Histories also delete and fail objects that are not primary."""
    irreplaceable: Sequence[Resource] = ()
    """Children that nobody deletes, because what they record cannot be made again."""
    rounds: int = 120
    """How many peaceful rounds (sync, reconcile all, one kubelet step) convergence may take."""

    @cached_property
    def ground(self) -> MemoryApi:
        """The prepared API server that every history starts from a copy of."""
        api = MemoryApi(now=ManualClock(), auto_gc=False)
        self.prepare(api)
        return api


class History:
    """A world in motion; the tests below drive it, and a controller's own tests may, too."""

    def __init__(self, world: PlannerWorld, start: Start, seed: int = 0) -> None:
        self.world = world
        self.clock = ManualClock()
        self.api = world.ground.fork()
        self.api.now = self.clock
        self.cluster = world.cluster(self.api)
        self.start = start
        self.rng = Random(seed)
        self.log: list[str] = []
        self.own_writes = 0
        self.come_back()
        self.process = self.new_process()
        self._known: dict[Key, None] = {}

    def new_process(self) -> Process:
        """A controller that has just started, with a full list."""
        return Process(self.api, self.world.planner, field_manager=self.world.field_manager, on_write=self._after_write)

    def _after_write(self, moment: Moment) -> None:
        self.own_writes += 1
        self.log.append(f"write {type(moment.write).__name__} {moment.write.resource.kind}: {moment.plan.why}")
        self.world.check(moment)

    def fork(self) -> "History":
        """An independent copy of the world, with a controller that has just started."""
        twin = History.__new__(History)
        clock, api = ManualClock(self.clock()), self.api.fork()
        api.now = clock
        twin.__dict__.update(
            self.__dict__,
            rng=Random(self.rng.random()),
            log=list(self.log),
            clock=clock,
            api=api,
            cluster=self.world.cluster(api),
            _known=dict(self._known),
        )
        twin.crash()
        return twin

    def primary_keys(self) -> Sequence[Key]:
        """Every key of the primary kind that ever was."""
        for record in self.api.page(self.world.primary).records:
            self._known[key_of(record.manifest)] = None
        return tuple(self._known)

    # ------------------------------------------------------------------ things that happen

    def edit(self, edit: Edit) -> None:
        """A user does something."""
        try:
            edit(self.api)
        except (StatusError, ConnectionCut) as refusal:
            self.log.append(f"user was refused: {refusal}")

    def come_back(self) -> None:
        """Users create whatever of the beginning is not there (any more): the same names, other uids."""
        for resource, manifest in self.start:
            if not _stands(self.api, resource, manifest):
                self.edit(partial(_create, resource, manifest))

    def crash(self) -> None:
        """The controller dies and starts anew, with a full list."""
        self.log.append("controller restarts")
        self.process = self.new_process()

    def reconcile(self, key: Key, *, kill: Kill | None = None) -> Pass:
        """One pass over a key; a killed controller restarts."""
        if self.process.is_waiting(key):
            return Pass()
        done = self.process.reconcile(key, kill=kill, rng=self.rng)
        if done.killed:
            self.crash()
        return done

    def children(self) -> list[tuple[Resource, Key]]:
        """Everything watched that is not primary, and not part of the cluster itself, such as a node."""
        return [
            (resource, key_of(record.manifest))
            for resource in self.process.view.watched
            if resource.namespaced and resource not in (self.world.primary, *self.world.irreplaceable)
            for record in self.api.page(resource).records
        ]

    def disturb(self, choice: int, how: int) -> None:
        """A child is deleted by someone, or a pod suffers a mishap."""
        children = self.children()
        if not children or not self.world.disturb_children:
            return
        resource, key = children[choice % len(children)]
        try:
            if resource != PODS or how % 4 == 0:
                self.log.append(f"someone deletes {resource.kind} {key}")
                self.api.delete(resource, key, field_manager="user")
            else:
                mishap = (self.cluster.fail_pod, self.cluster.restart_container, self.cluster.make_unready)[how % 4 - 1]
                self.log.append(f"{mishap.__name__} {key}")
                mishap(key)
        except StatusError as refusal:
            self.log.append(f"not possible: {refusal.message}")

    def move_pod(self, choice: int) -> None:
        """One pod moves on by one stage."""
        pods = self.cluster.pods()
        if pods:
            self.cluster.advance(pods[choice % len(pods)])

    # ------------------------------------------------------------------ peace

    def peaceful_round(self) -> timedelta:
        """Everyone catches up and does one thing; returns the shortest wait that a plan asked for."""
        self.api.collect_garbage()
        waits: list[timedelta] = []
        self.process.view.catch_up_all()
        for key in self.primary_keys():
            done = self.reconcile(key)
            self.process.view.catch_up_all()
            if done.plan is not None and done.plan.again_after is not None:
                waits.append(done.plan.again_after)
        self.cluster.step()
        return max(min(waits, default=timedelta(seconds=5)), timedelta(seconds=1))

    def settle(self) -> None:
        """Leave the world in peace until nothing is written any more; AssertionError on a livelock."""
        quiet = 0
        for _ in range(self.world.rounds):
            writes, version = self.api.write_count, self.api.resource_version
            wait = self.peaceful_round()
            quiet = quiet + 1 if (self.api.write_count, self.api.resource_version) == (writes, version) else 0
            self.clock.advance(wait.total_seconds())
            if quiet >= 4:
                return
        raise AssertionError(self.told(f"still writing after {self.world.rounds} peaceful rounds"))

    def told(self, what: str) -> str:
        """The message of a failure with the end of the story."""
        return "\n  ".join([f"{self.world.name}: {what}", *self.log[-25:]])

    def assert_converged(self) -> None:
        """The world is what was asked for, and planning it again writes nothing."""
        self.settle()
        reason = self.world.settled(self.api)
        assert not reason, self.told(f"settled in a wrong state: {reason}")
        self.process.view.catch_up_all()
        for key in self.primary_keys():
            plan = self.process.plan(key)
            assert plan is None or plan.is_empty, self.told(f"a settled world still plans writes for {key}: {plan}")


@dataclass(frozen=True)
class Action:
    """Something that happens in a history; its name is what Hypothesis prints."""

    name: str
    run: Callable[[History], None]

    def __call__(self, history: History) -> None:
        # Two things never happen in the same second, which is all that timestamps in Kubernetes tell apart.
        history.clock.advance(1)
        self.run(history)

    def __repr__(self) -> str:
        return self.name


def _reconcile(choice: int, kill: Kill | None = None) -> Action:
    def run(history: History) -> None:
        keys = history.primary_keys()
        if keys:
            history.reconcile(keys[choice % len(keys)], kill=kill)

    return Action(f"reconcile({choice}, {kill})", run)


def _catch_up(choice: int, changes: int | None) -> Action:
    def run(history: History) -> None:
        watched = history.process.view.watched
        history.process.view.catch_up(watched[choice % len(watched)], changes)

    return Action(f"catch_up({choice}, {changes})", run)


def _move_pod(choice: int) -> Action:
    return Action(f"move_pod({choice})", lambda history: history.move_pod(choice))


def _disturb(choice: int, how: int) -> Action:
    return Action(f"disturb({choice}, {how})", lambda history: history.disturb(choice, how))


def _edit(edit: Edit) -> Action:
    return Action(f"edit({edit!r})", lambda history: history.edit(edit))


def _wait(seconds: int) -> Action:
    def run(history: History) -> None:
        history.clock.advance(seconds)

    return Action(f"wait({seconds})", run)


def _peace(rounds: int) -> Action:
    def run(history: History) -> None:
        for _ in range(rounds):
            history.clock.advance(history.peaceful_round().total_seconds())

    return Action(f"peace({rounds})", run)


def _step(history: History) -> None:
    history.cluster.step()


def _collect_garbage(history: History) -> None:
    history.api.collect_garbage()


def _kills() -> st.SearchStrategy[Kill]:
    return st.builds(Kill, write=st.integers(0, 8), after_effect=st.booleans())


_CHOICE = st.integers(0, 11)


def _actions(world: PlannerWorld, *, kills: bool, lag: bool) -> st.SearchStrategy[list[Action]]:
    weighted: list[tuple[int, st.SearchStrategy[Action]]] = [
        (1, st.just(Action("rest", lambda _history: None))),
        (2, st.integers(1, 6).map(_peace)),
        (3, st.builds(_reconcile, _CHOICE)),
        (2, st.builds(_move_pod, _CHOICE)),
        (2, st.just(Action("step", _step))),
        (3, st.builds(_disturb, _CHOICE, st.integers(0, 3))),
        (2, world.edits.map(_edit)),
        (2, st.just(Action("come_back", History.come_back))),
        (1, st.integers(1, 600).map(_wait)),
        (1, st.just(Action("collect_garbage", _collect_garbage))),
    ]
    if kills:
        weighted += [(2, st.builds(_reconcile, _CHOICE, _kills())), (1, st.just(Action("crash", History.crash)))]
    if lag:
        weighted += [
            (2, st.builds(_catch_up, _CHOICE, st.integers(1, 3))),
            (2, st.builds(_catch_up, _CHOICE, st.none())),
        ]
    else:
        weighted = [(weight, strategy.map(_seen_at_once)) for weight, strategy in weighted]
    # Not `one_of`, which would flatten a controller's edits and let them crowd out everything else.
    dealt = st.sampled_from([strategy for weight, strategy in weighted for _ in range(weight)])
    # Long enough for pods to come to life; shrinking turns what does not matter into rests.
    return st.lists(dealt.flatmap(lambda strategy: strategy), min_size=12, max_size=40)


def _seen_at_once(action: Action) -> Action:
    def run(history: History) -> None:
        action(history)
        history.process.view.catch_up_all()

    return Action(action.name, run)


def _play(history: History, actions: Iterable[Action]) -> None:
    for action in actions:
        action(history)


def _assert_pure(history: History, key: Key) -> None:
    planner, now = history.process.planner, history.api.now()
    seen = planner.observe(key)
    if seen is None:
        return
    pristine = deepcopy(seen)
    first = planner.plan(seen, now)
    assert seen == pristine, history.told(f"planning {key} changed its input")
    again = planner.plan(pristine, now)
    assert first == again, history.told(f"planning {key} twice gave two plans")
    assert planner.plan(planner.observe(key), now) == first, history.told(f"observing {key} twice gave two plans")


def _kept_by_a_fresh_cache(history: History, key: Key, stale: Plan | None) -> list[str]:
    """What a stale plan would destroy and a controller with a fresh cache would keep to the end."""
    here = {
        step.uid: step
        for step in doomed_by(stale)
        if (found := history.api.find(step.resource, step.key)) is not None
        and found["metadata"]["uid"] == step.uid
        and "deletionTimestamp" not in found["metadata"]
        and not history.world.may_destroy(history.api, step)
    }
    if not here:
        return []
    peaceful = history.fork()
    for step in doomed_by(peaceful.process.plan(key)):
        here.pop(step.uid, None)
    if not here:
        return []
    peaceful.settle()
    resources = {seen.resource for seen in here.values()}
    survivors = {str(record.uid) for resource in resources for record in peaceful.api.page(resource).records}
    return [f"{step.resource.kind} {step.key}" for uid, step in here.items() if uid in survivors]


class _LateCaches:
    """Caches of every age that a controller may plan from: they have seen its own writes, and nothing since.

    The primary object is always fresh, because what a user asked for last cannot be known from an older cache.
    """

    _MOST = 3

    def __init__(self, history: History) -> None:
        self._history = history
        self._own_writes = history.own_writes
        self._processes: list[Process] = []

    def look(self) -> None:
        """Check the plans from all of them, then begin one more."""
        history = self._history
        if history.own_writes != self._own_writes:
            self._own_writes = history.own_writes
            self._processes.clear()
        for process in (history.process, *self._processes):
            process.view.catch_up(history.world.primary)
            for key in history.primary_keys():
                self._assert_keeps(process, key)
        if len(self._processes) < self._MOST:
            self._processes.append(history.new_process())

    def _assert_keeps(self, process: Process, key: Key) -> None:
        if process.view.is_fresh or process.is_waiting(key):
            return
        lost = _kept_by_a_fresh_cache(self._history, key, process.plan(key))
        shown = ", ".join(lost)
        assert not lost, self._history.told(f"a stale cache would destroy what a fresh one keeps: {shown}")


def planner_suite(world: PlannerWorld, *, max_examples: int = 50, shrink: bool = True) -> type:
    """Return a test class for one planner; assign it to a module-level name that starts with `Test`.

    `shrink=False` reports the first failing history as it is, which is quicker. Histories are the same in every run, so
    that a red test means a change; `MATRIXINFER_PROPERTY_SEARCH=40` looks at 40 times as many, other ones each time.
    """
    search = int(os.environ.get("MATRIXINFER_PROPERTY_SEARCH", "0"))
    max_examples *= max(search, 1)
    config = settings(
        max_examples=max_examples,
        derandomize=not search,
        deadline=None,
        print_blob=True,
        phases=[phase for phase in Phase if shrink or phase not in (Phase.shrink, Phase.explain)],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    seeds = st.integers(0, 2**16)

    class PlannerSuite:
        """See the module's docstring."""

        @config
        @given(world.start, _actions(world, kills=False, lag=False), seeds)
        def test_any_reachable_world_converges_and_falls_silent(self, start: Start, actions: Any, seed: int) -> None:
            history = History(world, start, seed)
            _play(history, actions)
            history.assert_converged()

        @config
        @given(world.start, _actions(world, kills=True, lag=True), seeds)
        def test_a_killed_and_lagging_controller_converges(self, start: Start, actions: Any, seed: int) -> None:
            history = History(world, start, seed)
            _play(history, actions)
            history.assert_converged()

        @config
        @given(world.start, _actions(world, kills=False, lag=True), seeds)
        def test_a_plan_depends_on_what_was_seen_and_changes_none_of_it(
            self, start: Start, actions: Any, seed: int
        ) -> None:
            history = History(world, start, seed)
            for action in actions:
                action(history)
                for key in history.primary_keys():
                    _assert_pure(history, key)

        @settings(config, max_examples=max(10, max_examples // 2))
        @given(world.start, _actions(world, kills=False, lag=True), seeds)
        def test_a_stale_cache_destroys_nothing_that_a_fresh_one_keeps(
            self, start: Start, actions: Any, seed: int
        ) -> None:
            history = History(world, start, seed)
            late = _LateCaches(history)
            for action in actions:
                action(history)
                late.look()

        @settings(config, max_examples=max(5, max_examples // 10))
        @given(world.start, world.edits, seeds)
        def test_killed_at_each_write_it_comes_to_the_same_end(self, start: Start, edit: Edit, seed: int) -> None:
            writes = _writes_of_a_life(world, start, edit, seed)
            for number in range(writes):
                for after_effect in (False, True):
                    history = History(world, start, seed)
                    history.api.faults.kill_at_write(history.api.write_count + number + 1, after_effect=after_effect)
                    _live(history, edit)

    PlannerSuite.__qualname__ = PlannerSuite.__name__ = f"Test{world.name.title().replace('-', '')}"
    return PlannerSuite


def _live(history: History, edit: Edit) -> None:
    history.assert_converged()
    history.edit(edit)
    history.assert_converged()


def _writes_of_a_life(world: PlannerWorld, start: Start, edit: Edit, seed: int) -> int:
    history = History(world, start, seed)
    before = history.api.write_count
    _live(history, edit)
    return history.api.write_count - before
