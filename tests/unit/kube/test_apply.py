"""The executor: order, ownership, preconditions, slow start, status in spite of failures."""

import asyncio
from typing import Any

import pytest

from matrixinfer.kube.apply import Executor, Failure
from matrixinfer.kube.codec import MANIFESTS
from matrixinfer.kube.errors import Conflict, Forbidden, Invalid, LeaseLost, NotOwned
from matrixinfer.kube.plan import Apply, Create, Delete, Merge, Plan, Scale, WriteStatus
from matrixinfer.kube.resource import CONFIG_MAPS, DEPLOYMENTS, PODS, SERVICES, Key, owner_reference
from matrixinfer.kube.store import Store

NS = "default"


def pod(name: str, owner: str = "me") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": NS}
    if owner:
        metadata["ownerReferences"] = [owner_reference(DEPLOYMENTS, owner, f"uid-{owner}")]
    return {"metadata": metadata, "spec": {"containers": [{"name": "c", "image": "i"}]}}


def config(name: str, owner: str = "me", **data: str) -> dict[str, Any]:
    return {"metadata": pod(name, owner)["metadata"], "data": data}


@pytest.fixture
def store() -> Store[Any]:
    return Store(CONFIG_MAPS, MANIFESTS)


@pytest.fixture
def executor(memory_client: Any, store: Store[Any]) -> Executor:
    return Executor(memory_client, lambda r: [store] if r == CONFIG_MAPS else [], field_manager="me")


async def test_a_repeated_create_with_our_owner_succeeds(executor: Executor, api: Any) -> None:
    plan = Plan(waves=[[Create(PODS, pod("a"))]])
    first = await executor.carry_out(plan)
    again = await executor.carry_out(plan)
    assert first.complete
    assert again.complete
    assert again.written == first.written, "the expectation is on the object that is there"
    assert len(api.list(PODS)) == 1


@pytest.mark.parametrize("owner", ["other", ""])
async def test_a_create_over_a_strangers_object_is_not_owned(executor: Executor, api: Any, owner: str) -> None:
    before = api.create(PODS, pod("a", owner))
    report = await executor.carry_out(Plan(waves=[[Create(PODS, pod("a"))]]))
    (failure,) = report.failures
    assert isinstance(failure.error, NotOwned)
    assert ("Deployment other" if owner else "nobody") in str(failure)
    assert api.get(PODS, Key(NS, "a")) == before


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("owner", ["other", ""])
async def test_an_apply_never_takes_over_a_strangers_object(
    executor: Executor, api: Any, store: Store[Any], owner: str, cached: bool
) -> None:
    before = api.create(CONFIG_MAPS, config("a", owner, k="theirs"))
    if cached:
        store.put(before)
    report = await executor.carry_out(Plan(waves=[[Apply(CONFIG_MAPS, config("a", k="ours"))]]))
    assert isinstance(report.failures[0].error, NotOwned)
    assert api.get(CONFIG_MAPS, Key(NS, "a"))["data"] == {"k": "theirs"}


async def test_an_apply_creates_and_updates_its_own(executor: Executor, api: Any, store: Store[Any]) -> None:
    assert (await executor.carry_out(Plan(waves=[[Apply(CONFIG_MAPS, config("a", k="1", gone="x"))]]))).complete
    store.put(api.get(CONFIG_MAPS, Key(NS, "a")))
    assert (await executor.carry_out(Plan(waves=[[Apply(CONFIG_MAPS, config("a", k="2"))]]))).complete
    assert api.get(CONFIG_MAPS, Key(NS, "a"))["data"] == {"k": "2"}


async def test_an_apply_to_a_namesake_made_since_the_cache_looked_is_refused(
    executor: Executor, api: Any, store: Store[Any], memory_client: Any
) -> None:
    """The uid that the cache showed is a precondition, so a stale cache cannot take over the successor."""
    store.put(api.create(CONFIG_MAPS, config("a", k="1")))
    api.delete(CONFIG_MAPS, Key(NS, "a"))
    api.create(CONFIG_MAPS, config("a", "other", k="theirs"))
    report = await executor.carry_out(Plan(waves=[[Apply(CONFIG_MAPS, config("a", k="ours"))]]))
    assert isinstance(report.failures[0].error, Conflict)


async def test_an_apply_without_owner_asks_nobody(executor: Executor, memory_client: Any) -> None:
    assert (await executor.carry_out(Plan(waves=[[Apply(CONFIG_MAPS, config("a", "", k="1"))]]))).complete
    assert memory_client.calls == ["apply"]


async def test_a_delete_takes_only_the_object_that_was_seen(executor: Executor, api: Any) -> None:
    created = api.create(CONFIG_MAPS, config("a"))
    key = Key(NS, "a")
    report = await executor.carry_out(Plan(waves=[[Delete(CONFIG_MAPS, key, "another-uid")]]))
    assert report.complete, "the one that was seen is gone"
    assert report.written[0].deleted
    assert api.find(CONFIG_MAPS, key) is not None
    gone = Plan(waves=[[Delete(CONFIG_MAPS, key, created["metadata"]["uid"])]])
    assert (await executor.carry_out(gone)).complete
    assert api.find(CONFIG_MAPS, key) is None
    assert (await executor.carry_out(gone)).complete, "already gone counts as success"


async def test_a_merge_is_tied_to_uid_and_version(executor: Executor, api: Any) -> None:
    created = api.create(CONFIG_MAPS, config("a", k="1"))
    uid, version = created["metadata"]["uid"], created["metadata"]["resourceVersion"]
    key, patch = Key(NS, "a"), {"metadata": {"annotations": {"x": "y"}}}
    assert (await executor.carry_out(Plan(waves=[[Merge(CONFIG_MAPS, key, uid, patch, version)]]))).complete
    stale = await executor.carry_out(Plan(waves=[[Merge(CONFIG_MAPS, key, uid, patch | {"data": {}}, version)]]))
    assert isinstance(stale.failures[0].error, Conflict)
    stranger = await executor.carry_out(Plan(waves=[[Merge(CONFIG_MAPS, key, "other", patch)]]))
    assert isinstance(stranger.failures[0].error, Conflict)


async def test_scale_writes_replicas_and_nothing_else(executor: Executor, api: Any) -> None:
    api.create(
        DEPLOYMENTS,
        {
            "metadata": {"name": "d", "namespace": NS},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"a": "b"}},
                "template": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]},
                },
            },
        },
    )
    assert (await executor.carry_out(Plan(waves=[[Scale(DEPLOYMENTS, Key(NS, "d"), 4)]]))).complete
    assert api.get(DEPLOYMENTS, Key(NS, "d"))["spec"]["replicas"] == 4


def status_of(created: dict[str, Any], desired: dict[str, Any], current: dict[str, Any]) -> WriteStatus:
    return WriteStatus(DEPLOYMENTS, Key(NS, "d"), created["metadata"]["uid"], desired, current)


@pytest.fixture
def deployment(api: Any) -> Any:
    return api.create(
        DEPLOYMENTS,
        {
            "metadata": {"name": "d", "namespace": NS},
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]},
                },
            },
        },
    )


async def test_status_is_written_only_when_it_differs(executor: Executor, deployment: Any, memory_client: Any) -> None:
    same = status_of(deployment, {"replicas": 1}, {"replicas": 1})
    assert (await executor.carry_out(Plan(status=[same]))).written == ()
    assert memory_client.calls == []
    changed = status_of(deployment, {"replicas": 2}, {"replicas": 1})
    assert (await executor.carry_out(Plan(status=[changed]))).complete
    assert memory_client.api.get(DEPLOYMENTS, Key(NS, "d"))["status"]["replicas"] == 2


async def test_status_is_written_even_when_a_step_failed(executor: Executor, deployment: Any, api: Any) -> None:
    api.create(PODS, pod("a", "other"))
    plan = Plan(waves=[[Create(PODS, pod("a"))]], status=[status_of(deployment, {"replicas": 2}, {})])
    report = await executor.carry_out(plan)
    assert len(report.failures) == 1
    assert api.get(DEPLOYMENTS, Key(NS, "d"))["status"]["replicas"] == 2


async def test_explain_says_the_failure_in_the_status(executor: Executor, deployment: Any, api: Any) -> None:
    api.create(PODS, pod("a", "other"))

    def explain(failures: Any) -> list[WriteStatus]:
        return [status_of(deployment, {"observedGeneration": len(failures)}, {})]

    await executor.carry_out(Plan(waves=[[Create(PODS, pod("a"))]]), explain)
    assert api.get(DEPLOYMENTS, Key(NS, "d"))["status"] == {"observedGeneration": 1}


async def test_status_of_an_object_deleted_meanwhile_is_no_failure(
    executor: Executor, deployment: Any, api: Any
) -> None:
    api.delete(DEPLOYMENTS, Key(NS, "d"))
    report = await executor.carry_out(Plan(status=[status_of(deployment, {"replicas": 2}, {})]))
    assert report.complete
    assert api.find(DEPLOYMENTS, Key(NS, "d")) is None


async def test_a_wave_begins_only_after_the_one_before(executor: Executor, memory_client: Any, api: Any) -> None:
    plan = Plan(waves=[[Apply(CONFIG_MAPS, config("a", "")), Create(PODS, pod("b"))], [Create(PODS, pod("c"))]])
    api.create(PODS, pod("b", "other"))
    report = await executor.carry_out(plan)
    assert len(report.failures) == 1
    assert api.find(PODS, Key(NS, "c")) is None
    assert api.find(CONFIG_MAPS, Key(NS, "a")) is not None


async def test_slow_start_stops_a_wave_that_is_refused(memory_client: Any, store: Store[Any], api: Any) -> None:
    """A quota that refuses everything costs one request, not a thousand."""

    async def refused(*args: Any, **more: Any) -> Any:
        memory_client.calls.append("create")
        raise Forbidden(403, "Forbidden", "exceeded quota")

    memory_client.create = refused
    executor = Executor(memory_client, lambda _: [store], field_manager="me")
    report = await executor.carry_out(Plan(waves=[[Create(PODS, pod(f"p{i}")) for i in range(1000)]]))
    assert len(report.failures) == 1
    assert len(memory_client.calls) == 1


async def test_slow_start_doubles_and_stops_at_the_first_refusal(memory_client: Any, store: Store[Any]) -> None:
    sizes: list[int] = []
    under_way = 0

    async def create(resource: Any, manifest: Any, **more: Any) -> Any:
        nonlocal under_way
        under_way += 1
        await asyncio.sleep(0)
        sizes.append(under_way)
        await asyncio.sleep(0)
        under_way -= 1
        if int(manifest["metadata"]["name"][1:]) >= 6:
            raise Invalid(422, "Invalid", "no more")
        return {"metadata": {**manifest["metadata"], "uid": "u", "resourceVersion": "1"}}

    memory_client.create = create
    executor = Executor(memory_client, lambda _: [], field_manager="me")
    report = await executor.carry_out(Plan(waves=[[Create(PODS, pod(f"p{i}")) for i in range(100)]]))
    assert len(sizes) == 7, "batches of 1, 2 and 4; the last one had the refusal"
    assert max(sizes) == 4
    assert (len(report.written), len(report.failures)) == (6, 1)


async def test_at_most_the_given_number_of_writes_are_under_way(memory_client: Any) -> None:
    under_way = most = 0

    async def create(resource: Any, manifest: Any, **more: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return {"metadata": {**manifest["metadata"], "uid": "u", "resourceVersion": "1"}}

    memory_client.create = create
    executor = Executor(memory_client, lambda _: [], field_manager="me", in_flight=asyncio.Semaphore(5))
    await executor.carry_out(Plan(waves=[[Create(PODS, pod(f"p{i}")) for i in range(64)]]))
    assert most == 5


@pytest.mark.parametrize("count", [1, 8])
async def test_nothing_is_written_once_the_lease_is_not_ours(memory_client: Any, api: Any, count: int) -> None:
    """A process that was paused and woke up must not finish its old plan."""
    writes = iter([True] + [False] * 100)
    executor = Executor(memory_client, lambda _: [], field_manager="me", may_write=lambda: next(writes))
    with pytest.raises(LeaseLost):
        await executor.carry_out(Plan(waves=[[Create(PODS, pod(f"p{i}"))] for i in range(count + 1)]))
    assert len(api.list(PODS)) == 1


async def test_a_failure_is_a_sentence(executor: Executor, api: Any) -> None:
    api.create(SERVICES, {"metadata": pod("a", "other")["metadata"], "spec": {"ports": [{"port": 1}]}})
    step = Apply(SERVICES, {"metadata": pod("a")["metadata"], "spec": {"ports": [{"port": 1}]}})
    report = await executor.carry_out(Plan(waves=[[step]]))
    assert isinstance(report.failures[0], Failure)
    assert str(report.failures[0]).startswith("apply Service default/a failed: Service default/a exists and belongs to")
