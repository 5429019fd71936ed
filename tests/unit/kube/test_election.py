"""The decision by plain values; the holder by a hanging, refusing, lossy server on virtual time."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.kube.election import ElectionSettings, Elector, Lease, Make, Observation, Renew, Take, Wait, decide
from matrixinfer.kube.errors import ConfigError, LeaseLost
from matrixinfer.kube.resource import LEASES, Key

Virtual = Callable[[Any], Any]
KEY = Key("default", "lease")
SETTINGS = ElectionSettings(name="lease", namespace="default", identity="pod")


def seen(holder: str, since: float = 0.0, seconds: float = 15.0, *, vanished: bool = False) -> Observation:
    return Observation(Lease(holder, seconds, 3, "1", {}), since, vanished)


def test_without_a_lease_one_is_made() -> None:
    assert decide(None, "me", 0, lease_seconds=15) == Make()


def test_a_released_lease_is_taken_at_once() -> None:
    assert decide(seen(""), "me", 0, lease_seconds=15) == Take(4)


def test_our_own_is_renewed() -> None:
    assert decide(seen("me"), "me", 1000, lease_seconds=15) == Renew()


def test_a_strangers_is_awaited_from_when_we_saw_it_change() -> None:
    assert decide(seen("other", since=100), "me", 114, lease_seconds=15) == Wait(1)
    assert decide(seen("other", since=100), "me", 115, lease_seconds=15) == Take(4)


def test_the_holders_own_duration_counts_when_it_is_longer() -> None:
    assert decide(seen("other", since=0, seconds=60), "me", 20, lease_seconds=15) == Wait(40)
    assert decide(seen("other", since=0, seconds=0), "me", 14, lease_seconds=15) == Wait(1)


def test_a_lease_that_was_deleted_is_no_invitation_while_its_holder_may_still_work() -> None:
    assert decide(seen("other", since=0, vanished=True), "me", 10, lease_seconds=15) == Wait(5)
    assert decide(seen("other", since=0, vanished=True), "me", 15, lease_seconds=15) == Make()


@given(now=st.floats(0, 1e6), since=st.floats(0, 1e6), seconds=st.floats(0, 100))
def test_nobody_takes_a_lease_before_it_expired(now: float, since: float, seconds: float) -> None:
    decision = decide(seen("other", since=since, seconds=seconds), "me", now, lease_seconds=15)
    if now < since + 15:
        assert isinstance(decision, Wait)


@pytest.mark.parametrize(
    "settings",
    [
        {"renew_deadline_seconds": 12.0, "request_seconds": 4.0},
        {"lease_seconds": 10.0},
        {"retry_seconds": 8.0},
    ],
)
def test_settings_that_let_two_hold_it_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        ElectionSettings(name="l", namespace="n", identity="i", **settings).check()


class Process:
    """One candidate on the loop's clock; notes when it worked and when a write was allowed."""

    def __init__(self, client: Any, **more: Any) -> None:
        self.client = client
        self.more = more
        self.worked: list[float] = []
        self.started: float | None = None
        self.stopped: float | None = None
        self.error: BaseException | None = None

    async def work(self) -> None:
        clock = asyncio.get_running_loop().time
        self.started = clock()
        try:
            while True:
                assert self.elector.holds()
                self.worked.append(clock())
                await asyncio.sleep(0.1)
        finally:
            self.stopped = clock()

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        self.elector = Elector(self.client, SETTINGS, monotonic=clock, draw=lambda: 0.5, **self.more)
        try:
            await self.elector.run(self.work)
        except LeaseLost as exc:
            self.error = exc


async def until(claim: Callable[[], bool], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not claim():
            await asyncio.sleep(0.01)


def test_one_leads_and_the_other_waits(virtual: Virtual, memory_client: Any, second_client: Any) -> None:
    async def main() -> None:
        first, second = Process(memory_client), Process(second_client)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(first.run())]
            await until(lambda: first.started is not None)
            tasks.append(group.create_task(second.run()))
            await asyncio.sleep(300)
            assert second.started is None
            assert first.stopped is None
            lease = memory_client.api.get(LEASES, KEY)
            assert lease["spec"]["leaseTransitions"] == 0
            assert lease["spec"]["leaseDurationSeconds"] == 15
            for task in tasks:
                task.cancel()

    virtual(main())


def test_a_clean_exit_releases_and_the_other_starts_within_one_retry(
    virtual: Virtual, memory_client: Any, second_client: Any
) -> None:
    async def main() -> None:
        clock = asyncio.get_running_loop().time
        first, second = Process(memory_client), Process(second_client)
        async with asyncio.TaskGroup() as group:
            leading = group.create_task(first.run())
            await until(lambda: first.started is not None)
            following = group.create_task(second.run())
            await asyncio.sleep(10)
            leading.cancel()
            stopped_at = clock()
            await until(lambda: second.started is not None)
            assert first.stopped is not None
            assert second.started is not None
            assert first.stopped <= second.started <= stopped_at + 2.6
            assert memory_client.api.get(LEASES, KEY)["spec"]["leaseTransitions"] == 1
            following.cancel()

    virtual(main())


@pytest.mark.parametrize("fault", ["hanging", "refusing"])
def test_a_holder_that_cannot_renew_stops_before_another_can_start(
    virtual: Virtual, memory_client: Any, second_client: Any, fault: str
) -> None:
    """A hanging and a refusing API server alike: work is cancelled in time, though nobody answers."""

    async def main() -> None:
        first, second = Process(memory_client), Process(second_client)
        async with asyncio.TaskGroup() as group:
            group.create_task(first.run())
            await until(lambda: first.started is not None)
            following = group.create_task(second.run())
            await asyncio.sleep(30)
            setattr(memory_client, fault, True)
            await until(lambda: second.started is not None)
            assert first.stopped is not None
            assert second.started is not None
            assert second.started - first.stopped >= 15 - 10 - 0.01
            assert isinstance(first.error, LeaseLost)
            assert memory_client.api.get(LEASES, KEY)["spec"]["leaseTransitions"] == 1
            following.cancel()

    virtual(main())


def test_killed_and_restarted_it_waits_for_its_own_former_lease(virtual: Virtual, memory_client: Any) -> None:
    """The same pod name is another process: nothing was released, so the lease must expire first."""

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        first = Process(memory_client)
        async with asyncio.TaskGroup() as group:
            leading = group.create_task(first.run())
            await until(lambda: first.started is not None)
            memory_client.refusing = True  # a kill -9 releases nothing
            leading.cancel()
            await asyncio.sleep(0.01)
            memory_client.refusing = False
            killed_at = clock()
            second = Process(memory_client)
            restarted = group.create_task(second.run())
            await until(lambda: second.started is not None)
            assert second.started is not None
            assert 14 <= second.started - killed_at <= 18
            restarted.cancel()

    virtual(main())


def test_a_renewal_whose_answer_was_lost_is_no_loss(virtual: Virtual, memory_client: Any) -> None:
    async def main() -> None:
        process = Process(memory_client)
        async with asyncio.TaskGroup() as group:
            leading = group.create_task(process.run())
            await until(lambda: process.started is not None)
            for _ in range(20):
                memory_client.lose_answers = 1
                await asyncio.sleep(20)
            assert process.stopped is None
            leading.cancel()

    virtual(main())


def test_a_slow_server_does_not_cost_the_lease(virtual: Virtual, memory_client: Any) -> None:
    async def main() -> None:
        process = Process(memory_client)
        memory_client.latency = 3.5
        async with asyncio.TaskGroup() as group:
            leading = group.create_task(process.run())
            await until(lambda: process.started is not None)
            await asyncio.sleep(300)
            assert process.stopped is None
            leading.cancel()

    virtual(main())


def test_a_lease_taken_by_somebody_else_stops_the_work_at_the_next_renewal(
    virtual: Virtual, memory_client: Any, api: Any
) -> None:
    async def main() -> None:
        process = Process(memory_client)
        async with asyncio.TaskGroup() as group:
            group.create_task(process.run())
            await until(lambda: process.started is not None)
            api.merge_patch(LEASES, KEY, {"spec": {"holderIdentity": "thief"}})
            await until(lambda: process.stopped is not None, 3.0)
        assert "thief" in str(process.error)
        assert api.get(LEASES, KEY)["spec"]["holderIdentity"] == "thief", "what is not ours is not released"

    virtual(main())


def test_a_deleted_lease_stops_the_work_and_nobody_starts_early(
    virtual: Virtual, memory_client: Any, second_client: Any, api: Any
) -> None:
    async def main() -> None:
        first, second = Process(memory_client), Process(second_client)
        async with asyncio.TaskGroup() as group:
            group.create_task(first.run())
            await until(lambda: first.started is not None)
            following = group.create_task(second.run())
            await asyncio.sleep(30)
            api.delete(LEASES, KEY)
            await until(lambda: second.started is not None)
            assert first.stopped is not None
            assert second.started is not None
            assert first.stopped < second.started
            following.cancel()

    virtual(main())


def test_work_that_crashes_releases_the_lease_and_is_raised(virtual: Virtual, memory_client: Any, api: Any) -> None:
    async def main() -> None:
        async def crash() -> None:
            raise ZeroDivisionError("a bug")

        elector = Elector(memory_client, SETTINGS, monotonic=asyncio.get_running_loop().time)
        with pytest.raises(ZeroDivisionError):
            await elector.run(crash)
        assert api.get(LEASES, KEY)["spec"]["holderIdentity"] == ""
        assert not elector.holds()

    virtual(main())


def test_work_that_ends_ends_the_renewal(virtual: Virtual, memory_client: Any) -> None:
    async def main() -> None:
        async def work() -> None:
            await asyncio.sleep(7)

        elector = Elector(memory_client, SETTINGS, monotonic=asyncio.get_running_loop().time)
        await elector.run(work)
        calls = len(memory_client.calls)
        await asyncio.sleep(60)
        assert len(memory_client.calls) == calls

    virtual(main())


def test_a_paused_holder_knows_when_it_wakes(virtual: Virtual, memory_client: Any) -> None:
    """A process stopped by a signal has not run its timers yet; `holds` is false all the same."""

    async def main() -> None:
        now = [0.0]
        checks: list[bool] = []
        elector = Elector(memory_client, SETTINGS, monotonic=lambda: now[0])

        async def work() -> None:
            checks.append(elector.holds())
            now[0] += 10.0
            checks.append(elector.holds())

        with pytest.raises(LeaseLost):
            await elector.run(work)
        assert checks == [True, False]

    virtual(main())


def test_times_are_utc_with_six_digits(virtual: Virtual, memory_client: Any, api: Any) -> None:
    async def main() -> None:
        async def work() -> None:
            spec = api.get(LEASES, KEY)["spec"]
            assert spec["renewTime"].endswith("Z")
            assert len(spec["renewTime"]) == len("2026-01-02T03:04:05.000000Z")

        await Elector(memory_client, SETTINGS, monotonic=asyncio.get_running_loop().time).run(work)

    virtual(main())
