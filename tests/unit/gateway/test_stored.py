"""Objects that one engine keeps: noticed when they are made, found by every worker, lost with their endpoint."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.gateway.rig import Asked, Behaviour, Rig, answering, mapped, post

from matrixinfer.gateway.core.objects import IdFinder, Keeper, keeper
from matrixinfer.gateway.core.types import Endpoint
from matrixinfer.gateway.ledger import Ledger

# -- the id ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"resp_7","object":"response"}',
        b'{ "object": "response",\n  "id" :\t"resp_7" }',
        b'event: response.created\ndata: {"response":{"id":"resp_7"},"type":"response.created"}\n\n',
        b'{"instructions":"say \\"id\\":\\"resp_wrong\\"","output":[{"id":"msg_1"}],"id":"resp_7"}',
    ],
)
@given(cut=st.integers(0, 120))
def test_the_id_is_found_wherever_the_network_cuts(body: bytes, cut: int) -> None:
    finder = IdFinder()
    done = finder.feed(body[:cut]) or finder.feed(body[cut:])
    assert (done, finder.object_id) == (True, "resp_7")


def test_the_search_ends() -> None:
    finder = IdFinder()
    pieces = 0
    while not finder.feed(b"x" * 1000):
        pieces += 1
    assert (pieces, finder.object_id) == (16, "")


# -- the ledger -----------------------------------------------------------------------------------------------------


def test_every_worker_finds_what_one_of_them_remembers() -> None:
    mine, other = mapped(Ledger.create(2, 64), lambda fd: (Ledger(fd, 2, 64), Ledger(fd, 2, 64)))
    mine.page(0).remember("resp_a", Keeper(7))
    mine.page(1).remember("resp_b", Keeper(8))
    assert (other.find("resp_a"), other.find("resp_b"), other.find("resp_c")) == (7, 8, None)


@given(st.lists(st.tuples(st.text(max_size=9), st.integers(1, 2**64 - 1)), min_size=1, max_size=200))
def test_the_newest_are_kept_and_memory_is_bounded(entries: list[tuple[str, int]]) -> None:
    """One bucket of eight: whatever was remembered, the last eight ids are right and nothing else is found."""
    ledger = mapped(Ledger.create(1, 8), lambda fd: Ledger(fd, 1, 8))
    page = ledger.page(0)
    for object_id, number in entries:
        page.remember(object_id, Keeper(number))
    assert [ledger.find(object_id) for object_id, _ in entries[-1:]] == [entries[-1][1]]
    newest = dict(entries[-8:])
    assert all(ledger.find(object_id) == number for object_id, number in newest.items())
    older = {object_id for object_id, _ in entries} - newest.keys()
    assert not any(ledger.find(object_id) for object_id in older)


def test_a_reader_that_catches_half_of_a_write_sees_nothing_false() -> None:
    """Whatever words a bucket holds at any step of a write, an id is found with its own keeper or not at all."""

    class Traced:
        def __init__(self, words: memoryview) -> None:
            self.words = words

        def __getitem__(self, at: int) -> int:
            return int(self.words[at])

        def __setitem__(self, at: int, value: int) -> None:
            self.words[at] = value
            seen.append({name: ledger.find(name) for name in known})

    known: dict[str, int] = {}
    seen: list[dict[str, int | None]] = []
    ledger = mapped(Ledger.create(1, 8), lambda fd: Ledger(fd, 1, 8))
    page = ledger.page(0)
    page._words = Traced(page._words)  # type: ignore[assignment]
    for number in range(1, 9):
        before = dict(known)
        known[f"resp_{number}"] = number
        seen.clear()
        page.remember(f"resp_{number}", Keeper(number))
        for found in seen:
            assert all(found[name] == known[name] for name in before)
            assert found[f"resp_{number}"] in (None, number)


def test_a_pod_at_another_port_is_another_keeper() -> None:
    first, second = (Endpoint(0, "pod", "uid", "127.0.0.1", port) for port in (8000, 8001))
    assert keeper(first) != keeper(second)


# -- over sockets ---------------------------------------------------------------------------------------------------


def keeping(object_id: bytes, *, stream: bool = False) -> Behaviour:
    """An engine that makes one response and says what it was asked after that."""

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        body = b'{"id":"%s","line":"%s"}' % (object_id, asked.line)
        media = b"application/json"
        if stream and asked.line.startswith(b"POST /v1/responses "):
            media, body = (
                b"text/event-stream",
                b'event: response.created\ndata: {"response":{"id":"%s"}}\n\n' % object_id,
            )
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (media, len(body)) + body)

    return behave


def call(method: str, path: str, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in ("host: gw", "authorization: Bearer x", *headers))
    return f"{method} /v1/responses/{path} HTTP/1.1\r\n{lines}\r\n".encode()


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_for_a_stored_response_go_to_the_endpoint_that_keeps_it(rig: Rig, stream: bool) -> None:
    for number in range(8):
        await rig.engine(keeping(b"resp_%d" % number, stream=stream))
    await rig.start()
    made = await rig.ask(post(path="/v1/responses"))
    keeper_of_it = next(engine for engine in rig.engines if engine.asked)
    object_id = f"resp_{rig.engines.index(keeper_of_it)}"
    assert object_id.encode() in made.body
    for method, path in [
        ("GET", f"{object_id}?stream=false"),
        ("GET", f"{object_id}/input_items?limit=2"),
        ("POST", f"{object_id}/cancel"),
        ("DELETE", object_id),
    ]:
        answer = await rig.ask(call(method, path))
        assert msgspec.json.decode(answer.body)["line"] == f"{method} /v1/responses/{path} HTTP/1.1"
        assert b"authorization" not in keeper_of_it.asked[-1].headers
    assert [len(engine.asked) for engine in rig.engines if engine is not keeper_of_it] == [0] * 7
    assert rig.records[-1].pod == f"pod-{rig.engines.index(keeper_of_it)}"


async def test_a_request_that_continues_a_response_goes_where_it_is_kept(rig: Rig) -> None:
    for number in range(8):
        await rig.engine(keeping(b"resp_%d" % number))
    await rig.start()
    await rig.ask(post(path="/v1/responses"))
    first = next(engine for engine in rig.engines if engine.asked)
    body = b'{"model":"m","previous_response_id":"resp_%d"}' % rig.engines.index(first)
    for _ in range(3):
        assert (await rig.ask(post(body, "/v1/responses"))).status == 200
    assert len(first.asked) == 4
    # It is a preference: without the endpoint an engine says what it thinks of the id.
    rig.publish(without=(first,))
    assert (await rig.ask(post(body, "/v1/responses"))).status == 200
    assert len(first.asked) == 4


async def test_a_response_that_nobody_made_is_404(rig: Rig) -> None:
    engine = await rig.engine()
    await rig.start()
    answer = await rig.ask(call("GET", "resp_nobody"))
    assert (answer.status, answer.error["type"], answer.error["param"]) == (
        404,
        "invalid_request_error",
        "response_id",
    )
    assert "resp_nobody" in answer.error["message"]
    assert engine.asked == []


async def test_a_response_is_gone_with_its_endpoint_and_says_so(rig: Rig) -> None:
    engine = await rig.engine(keeping(b"resp_0"))
    await rig.engine()
    rig.engines.reverse()
    await rig.start()
    rig.publish(without=(rig.engines[0],))
    await rig.ask(post(path="/v1/responses"))
    assert (await rig.ask(call("GET", "resp_0"))).status == 200
    rig.publish(without=(engine,))
    answer = await rig.ask(call("GET", "resp_0"))
    assert (answer.status, answer.error["code"]) == (410, "gone")
    assert "send the request again" in answer.error["message"]


async def test_what_is_not_a_new_response_is_not_remembered(rig: Rig) -> None:
    refusal = b'{"error":{"id":"resp_0"}}'
    await rig.engine(answering(b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n" % len(refusal) + refusal))
    await rig.start()
    await rig.ask(post(path="/v1/responses"))
    assert rig.ledger.find("resp_0") is None
    rig.engines[0].behave = keeping(b"resp_1")
    await rig.ask(post(path="/v1/chat/completions"))
    assert rig.ledger.find("resp_1") is None


async def test_a_call_for_a_stored_response_is_not_repeated(rig: Rig) -> None:
    engine = await rig.engine(keeping(b"resp_0"))
    await rig.start()
    await rig.ask(post(path="/v1/responses"))
    engine.behave = answering(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno")
    answer = await rig.ask(call("DELETE", "resp_0"))
    assert (answer.status, answer.body, len(engine.asked)) == (503, b"no", 2)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_call_for_a_stored_response_takes_no_longer_than_its_client_waits(rig: Rig, method: str) -> None:
    async def silence(_asked: Asked, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    engine = await rig.engine(keeping(b"resp_0"))
    await rig.start()
    await rig.ask(post(path="/v1/responses"))
    engine.behave = silence
    async with asyncio.timeout(5):
        answer = await rig.ask(call(method, "resp_0", "x-request-timeout: 0.05"))
    assert (answer.status, answer.error["code"]) == (504, "total_timeout")


@pytest.mark.parametrize("request_", [call("DELETE", "resp_0"), call("POST", "resp_0/cancel")])
async def test_what_changes_a_stored_response_is_sent_once_even_when_its_connection_dies(
    rig: Rig, request_: bytes
) -> None:
    """Sent again over a new connection, a DELETE that was done would be answered with 404."""

    async def do_and_die(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    engine = await rig.engine(keeping(b"resp_0"))
    await rig.start()
    await rig.ask(post(path="/v1/responses"))
    engine.behave = do_and_die
    answer = await rig.ask(request_)
    assert (answer.status, answer.error["code"], len(engine.asked)) == (503, "reset", 2)
    assert engine.connections == 2


async def test_a_stored_response_is_read_again_when_a_kept_connection_dies(rig: Rig) -> None:
    async def die_once(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if engine.connections == 1:
            writer.transport.abort()
        else:
            await keeping(b"resp_0")(asked, writer)

    engine = await rig.engine(keeping(b"resp_0"))
    await rig.start()
    await rig.ask(post(path="/v1/responses"))
    engine.behave = die_once
    assert (await rig.ask(call("GET", "resp_0"))).status == 200
    assert rig.records[-1].stale_connections == 1
