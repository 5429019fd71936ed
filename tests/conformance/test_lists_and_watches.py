"""Reading many: pages, selectors, streams of changes."""

import asyncio

import pytest

from .conftest import Wire, config_map, gadget, pod


async def names(wire: Wire, what: str, **query: str) -> list[str]:
    listed = await wire.get(what, **query)
    assert listed.code == 200, listed.body
    mine = [item["metadata"]["name"] for item in listed.body["items"]]
    return [name for name in mine if name != "kube-root-ca.crt"]


async def test_a_list_carries_its_kind_and_version(wire: Wire) -> None:
    made = await wire.post("gadgets", gadget())
    listed = await wire.get("gadgets")
    assert (listed.body["kind"], listed.body["apiVersion"]) == ("GadgetList", "conformance.example.org/v1")
    assert int(listed.version) >= int(made.version)
    assert [item["metadata"]["uid"] for item in listed.body["items"]] == [made.meta["uid"]]


async def test_pages_are_parts_of_one_moment(wire: Wire) -> None:
    for name in "abcde":
        await wire.post("gadgets", gadget(name))
    first = await wire.get("gadgets", limit="2")
    assert [item["metadata"]["name"] for item in first.body["items"]] == ["a", "b"]
    assert first.meta["remainingItemCount"] == 3
    await wire.delete("gadgets/d")
    await wire.post("gadgets", gadget("bb"))
    second = await wire.get("gadgets", **{"limit": "2", "continue": first.meta["continue"]})
    third = await wire.get("gadgets", **{"limit": "2", "continue": second.meta["continue"]})
    rest = [item["metadata"]["name"] for page in (second, third) for item in page.body["items"]]
    assert rest == ["c", "d", "e"]
    assert not third.meta.get("continue")
    assert first.version == second.version == third.version


async def test_a_broken_continue_token_is_refused(wire: Wire) -> None:
    assert (await wire.get("gadgets", **{"limit": "2", "continue": "nonsense"})).code == 400


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("app=x", ["a", "b"]),
        ("app==x,tier=1", ["a"]),
        ("app!=x", ["c", "d"]),
        ("app in (x, y)", ["a", "b", "c"]),
        ("app notin (x)", ["c", "d"]),
        ("app", ["a", "b", "c"]),
        ("!app", ["d"]),
        ("app in (x),tier!=1", ["b"]),
    ],
)
async def test_label_selectors(wire: Wire, selector: str, found: list[str]) -> None:
    labels = {"a": {"app": "x", "tier": "1"}, "b": {"app": "x"}, "c": {"app": "y"}, "d": {}}
    for name, own in labels.items():
        await wire.post("gadgets", gadget(name, labels=own))
    assert await names(wire, "gadgets", labelSelector=selector) == found


async def test_field_selectors(wire: Wire) -> None:
    await wire.post("pods", pod("a", nodeName="n1"))
    await wire.post("pods", pod("b"))
    await wire.merge("pods/b/status", {"status": {"phase": "Failed"}})
    assert await names(wire, "pods", fieldSelector="spec.nodeName=n1") == ["a"]
    assert await names(wire, "pods", fieldSelector="status.phase!=Failed") == ["a"]
    assert await names(wire, "pods", fieldSelector="metadata.name=b") == ["b"]
    assert (await wire.get("pods", fieldSelector="spec.hostname=x")).refusal == (400, "BadRequest")
    assert await names(wire, "gadgets", fieldSelector="metadata.name=b") == []


async def test_a_list_over_all_namespaces(wire: Wire) -> None:
    await wire.post("gadgets", gadget())
    everything = await wire.get("/apis/conformance.example.org/v1/gadgets")
    assert wire.namespace in {item["metadata"]["namespace"] for item in everything.body["items"]}


async def test_a_watch_tells_what_happened_since(wire: Wire) -> None:
    start = await wire.get("gadgets")
    await wire.post("gadgets", gadget())
    changed = await wire.merge("gadgets/a", {"spec": {"size": 2}})
    async with wire.watch("gadgets", resourceVersion=start.version) as event:
        kind, seen = await event()
        assert (kind, seen["spec"]["size"]) == ("ADDED", 1)
        kind, seen = await event()
        assert (kind, seen["spec"]["size"], seen["metadata"]["resourceVersion"]) == ("MODIFIED", 2, changed.version)
        await wire.delete("gadgets/a")
        kind, seen = await event()
        assert kind == "DELETED"
        assert int(seen["metadata"]["resourceVersion"]) > int(changed.version)


async def test_a_watch_without_a_version_begins_with_what_is(wire: Wire) -> None:
    await wire.post("gadgets", gadget("a"))
    await wire.post("gadgets", gadget("b"))
    async with wire.watch("gadgets") as event:
        assert {(await event())[1]["metadata"]["name"] for _ in range(2)} == {"a", "b"}
        await wire.post("gadgets", gadget("c"))
        kind, seen = await event()
        assert (kind, seen["metadata"]["name"]) == ("ADDED", "c")


async def test_a_write_that_changes_nothing_is_no_event(wire: Wire) -> None:
    made = await wire.apply("gadgets/a", gadget())
    async with wire.watch("gadgets", resourceVersion=made.version) as event:
        await wire.apply("gadgets/a", gadget())
        await wire.merge("gadgets/a", {"spec": {"size": 1}})
        await wire.merge("gadgets/a", {"spec": {"size": 3}})
        assert (await event())[1]["spec"]["size"] == 3


async def test_a_selector_turns_changes_into_comings_and_goings(wire: Wire) -> None:
    start = await wire.get("gadgets")
    async with wire.watch("gadgets", resourceVersion=start.version, labelSelector="on=yes") as event:
        await wire.post("gadgets", gadget())
        await wire.merge("gadgets/a", {"metadata": {"labels": {"on": "yes"}}})
        assert (await event())[0] == "ADDED"
        await wire.merge("gadgets/a", {"spec": {"size": 2}})
        assert (await event())[0] == "MODIFIED"
        left = await wire.merge("gadgets/a", {"metadata": {"labels": {"on": None}}})
        kind, seen = await event()
        assert kind == "DELETED"
        assert seen["metadata"]["labels"] == {"on": "yes"}
        assert seen["metadata"]["resourceVersion"] == left.version


async def test_a_watch_of_one_name(wire: Wire) -> None:
    start = await wire.get("configmaps")
    async with wire.watch("configmaps", resourceVersion=start.version, fieldSelector="metadata.name=b") as event:
        await wire.post("configmaps", config_map("a"))
        await wire.post("configmaps", config_map("b"))
        assert (await event())[1]["metadata"]["name"] == "b"


async def test_the_end_of_the_initial_events_is_a_bookmark(wire: Wire) -> None:
    await wire.post("gadgets", gadget())
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    async with wire.watch("gadgets", **query) as event:
        assert (await event())[0] == "ADDED"
        kind, mark = await event()
        assert kind == "BOOKMARK"
        assert mark["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert mark["kind"] == "Gadget"


async def test_a_watch_from_a_forgotten_version_is_gone(wire: Wire) -> None:
    await wire.post("gadgets", gadget())
    if wire.compact is not None:
        wire.compact()
    async with wire.watch("gadgets", resourceVersion="1") as event:
        kind, status = await event()
    assert kind == "ERROR"
    assert (status["kind"], status["code"], status["reason"]) == ("Status", 410, "Expired")


async def test_a_watch_ends_when_its_time_is_up(wire: Wire) -> None:
    start = await wire.get("gadgets")
    url = wire.url + wire.path("gadgets")
    query = {"watch": "true", "resourceVersion": start.version, "timeoutSeconds": "1"}
    async with asyncio.timeout(15), wire.session.get(url, params=query) as stream:
        assert await stream.content.read() == b""
