"""The client and the executor against the real API server: what it really answers."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from matrixinfer.devcluster import ControlPlane
from matrixinfer.kube import finalizers
from matrixinfer.kube.apply import Executor
from matrixinfer.kube.client import Client
from matrixinfer.kube.codec import MANIFESTS
from matrixinfer.kube.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound, NotOwned
from matrixinfer.kube.events import EventRecorder, ObjectReference
from matrixinfer.kube.plan import Apply, Create, Delete, Merge, Note, Plan, Scale, WriteStatus
from matrixinfer.kube.reflector import Reflector
from matrixinfer.kube.resource import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    NODES,
    PODS,
    Key,
    Resource,
    owner_reference,
)
from matrixinfer.kube.store import Store

pytestmark = pytest.mark.integration


@pytest.fixture
async def client(bare_control_plane: ControlPlane) -> AsyncIterator[Client]:
    async with await Client.connect(bare_control_plane.kubeconfig, user_agent="test-kube-client") as connected:
        yield connected


def config(namespace: str, name: str = "a", owner: dict[str, Any] | None = None, **data: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if owner is not None:
        meta = owner["metadata"]
        metadata["ownerReferences"] = [owner_reference(CONFIG_MAPS, meta["name"], meta["uid"])]
    return {"metadata": metadata, "data": data}


def deployment(namespace: str) -> dict[str, Any]:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    return {
        "metadata": {"name": "d", "namespace": namespace},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": template},
    }


def executor(client: Client, *stores: Store[Any]) -> Executor:
    return Executor(client, lambda r: [s for s in stores if s.resource == r], field_manager="tester")


async def test_create_get_and_delete_with_preconditions(client: Client, namespace: str) -> None:
    key = Key(namespace, "a")
    created = await client.create(CONFIG_MAPS, config(namespace, k="1"))
    with pytest.raises(AlreadyExists):
        await client.create(CONFIG_MAPS, config(namespace, k="2"))
    assert (await client.get(CONFIG_MAPS, key))["data"] == {"k": "1"}
    with pytest.raises(Conflict):
        await client.delete(CONFIG_MAPS, key, uid=str(uuid.uuid4()))
    await client.delete(CONFIG_MAPS, key, uid=created["metadata"]["uid"])
    with pytest.raises(NotFound):
        await client.get(CONFIG_MAPS, key)
    with pytest.raises(NotFound):
        await client.delete(CONFIG_MAPS, key)


async def test_an_equal_apply_changes_nothing_and_what_is_left_out_goes(client: Client, namespace: str) -> None:
    first = await client.apply(CONFIG_MAPS, config(namespace, k="1", gone="x"), field_manager="m")
    again = await client.apply(CONFIG_MAPS, config(namespace, k="1", gone="x"), field_manager="m")
    assert first["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"]
    assert (await client.apply(CONFIG_MAPS, config(namespace, k="1"), field_manager="m"))["data"] == {"k": "1"}


async def test_a_uid_in_an_apply_is_a_precondition(client: Client, namespace: str) -> None:
    stored = await client.apply(CONFIG_MAPS, config(namespace, k="1"), field_manager="m")
    manifest = config(namespace, k="2")
    manifest["metadata"]["uid"] = stored["metadata"]["uid"]
    assert (await client.apply(CONFIG_MAPS, manifest, field_manager="m"))["data"] == {"k": "2"}
    manifest["metadata"]["uid"] = str(uuid.uuid4())
    with pytest.raises(Conflict):
        await client.apply(CONFIG_MAPS, manifest, field_manager="m")


async def test_a_bad_object_is_invalid_and_the_message_names_the_field(client: Client, namespace: str) -> None:
    bad = deployment(namespace)
    bad["spec"]["selector"] = {"matchLabels": {"other": "x"}}
    with pytest.raises(Invalid, match=r"spec\.template\.metadata\.labels"):
        await client.create(DEPLOYMENTS, bad)


async def test_lists_come_in_pages_and_selectors_select(client: Client, namespace: str) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(7):
            manifest = config(namespace, f"c{number}")
            manifest["metadata"]["labels"] = {"parity": "odd" if number % 2 else "even"}
            group.create_task(client.create(CONFIG_MAPS, manifest))
    pages = [page async for page in client.pages(CONFIG_MAPS, namespace, label_selector="parity", page_size=3)]
    assert [len(page.items) for page in pages] == [3, 3, 1]
    assert len({page.resource_version for page in pages}) == 1
    listing = await client.list(CONFIG_MAPS, namespace, label_selector="parity in (odd)")
    assert sorted(item["metadata"]["name"] for item in listing.items) == ["c1", "c3", "c5"]


async def test_a_reflector_follows_what_is_written(client: Client, namespace: str) -> None:
    store: Store[Any] = Store(CONFIG_MAPS, MANIFESTS, namespace=namespace)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        reflector = Reflector(client, store, page_size=2)
        task = group.create_task(reflector.run())
        await reflector.listed.wait()
        created = await client.create(CONFIG_MAPS, config(namespace, k="1"))
        while store.identity(Key(namespace, "a")) is None:
            await asyncio.sleep(0.01)
        assert store.high_water >= int(created["metadata"]["resourceVersion"])
        await client.delete(CONFIG_MAPS, Key(namespace, "a"))
        while Key(namespace, "a") in store:
            await asyncio.sleep(0.01)
        task.cancel()


async def test_discovery_knows_what_is_served(client: Client) -> None:
    assert await client.serves(DEPLOYMENTS)
    assert not await client.serves(Resource("scheduling.volcano.sh", "v1beta1", "podgroups", "PodGroup"))
    assert not await client.serves(Resource("apps", "v1", "absent", "Absent"))


async def test_a_service_account_is_refused_what_it_may_not(bare_control_plane: ControlPlane, namespace: str) -> None:
    kubeconfig: Path = bare_control_plane.kubeconfig_for(namespace, "default")
    async with await Client.connect(kubeconfig, user_agent="test") as poor:
        with pytest.raises(Forbidden, match="cannot list resource"):
            await poor.list(PODS, namespace)


async def test_the_executor_keeps_its_promises(client: Client, namespace: str) -> None:
    store: Store[Any] = Store(CONFIG_MAPS, MANIFESTS)
    runs = executor(client, store)
    # Owners that exist: the garbage collector removes what belongs to nobody.
    me, other = [await client.create(CONFIG_MAPS, config(namespace, name)) for name in ("me", "other")]
    mine, theirs = config(namespace, owner=me, k="1"), config(namespace, owner=other, k="theirs")
    assert (await runs.carry_out(Plan(waves=[[Create(CONFIG_MAPS, mine)]]))).complete
    assert (await runs.carry_out(Plan(waves=[[Create(CONFIG_MAPS, mine)]]))).complete
    refused = await runs.carry_out(Plan(waves=[[Create(CONFIG_MAPS, theirs)], [Apply(CONFIG_MAPS, mine)]]))
    assert isinstance(refused.failures[0].error, NotOwned)
    refused = await runs.carry_out(Plan(waves=[[Apply(CONFIG_MAPS, theirs)]]))
    assert isinstance(refused.failures[0].error, NotOwned)
    uid = (await client.get(CONFIG_MAPS, Key(namespace, "a")))["metadata"]["uid"]
    gone = [Delete(CONFIG_MAPS, Key(namespace, "a"), uid), Delete(CONFIG_MAPS, Key(namespace, "never"), uid)]
    assert (await runs.carry_out(Plan(waves=[gone]))).complete


async def test_status_scale_and_marks_touch_only_what_they_say(client: Client, namespace: str) -> None:
    key = Key(namespace, "d")
    created = await client.create(DEPLOYMENTS, deployment(namespace))
    uid = created["metadata"]["uid"]
    runs = executor(client)
    assert (await runs.carry_out(Plan(waves=[[Scale(DEPLOYMENTS, key, 2)]]))).complete
    assert (await client.get(DEPLOYMENTS, key))["spec"]["replicas"] == 2
    conditions = [{"type": "Ours", "status": "True", "reason": "R", "message": "m"}]
    status = WriteStatus(DEPLOYMENTS, key, uid, {"conditions": conditions}, {})
    assert (await runs.carry_out(Plan(status=[status]))).complete
    found = await client.get(DEPLOYMENTS, key)
    assert any(c["type"] == "Ours" for c in found["status"]["conditions"])
    assert found["spec"]["replicas"] == 2

    mark = Merge(DEPLOYMENTS, key, uid, {"metadata": {"annotations": {"mark": "1"}}})
    assert (await runs.carry_out(Plan(waves=[[mark]]))).complete
    stranger = Merge(DEPLOYMENTS, key, str(uuid.uuid4()), {"metadata": {"annotations": {"mark": "2"}}})
    assert isinstance((await runs.carry_out(Plan(waves=[[stranger]]))).failures[0].error, Conflict)
    stale = finalizers.add(DEPLOYMENTS, key, uid, created["metadata"]["resourceVersion"], [], "example.org/x")
    assert stale is not None
    assert isinstance((await runs.carry_out(Plan(waves=[[stale]]))).failures[0].error, Conflict)
    assert (await client.get(DEPLOYMENTS, key))["metadata"]["annotations"]["mark"] == "1"

    elsewhere = WriteStatus(DEPLOYMENTS, key, str(uuid.uuid4()), {"replicas": 9}, {})
    assert isinstance((await runs.carry_out(Plan(status=[elsewhere]))).failures[0].error, Conflict)


async def test_events_are_accepted_and_counted(client: Client, namespace: str) -> None:
    created = await client.create(CONFIG_MAPS, config(namespace))
    reference = ObjectReference(
        CONFIG_MAPS, Key(namespace, "a"), created["metadata"]["uid"], created["metadata"]["resourceVersion"]
    )
    recorder = EventRecorder(client, "tester")
    for _ in range(3):
        recorder.record(reference, Note("Tested", "it was tested"))
        await recorder.flush()
    (event,) = (await client.list(EVENTS, namespace, field_selector="involvedObject.name=a")).items
    assert (event["count"], event["reason"], event["source"]["component"]) == (3, "Tested", "tester")
    nodes = ObjectReference(NODES, Key("", "no-such-node"), str(uuid.uuid4()))
    recorder.record(nodes, Note("Tested", f"about a cluster-scoped object {namespace}"))
    await recorder.flush()
    found = await client.list(EVENTS, "default", field_selector="involvedObject.name=no-such-node")
    assert any(namespace in event["message"] for event in found.items)
