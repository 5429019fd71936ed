"""Paths, methods, forms and dialects, over real sockets."""

import asyncio
import re
from typing import Any

import msgspec
import pytest
from tests.unit.gateway.rig import OK, Asked, Rig, answering, post

from matrixinfer.gateway.core.surface import Surface, stored_object, surface

BOUNDARY = b"----form7"
FORM = (
    b'------form7\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    b'RIFF\r\n\x00\xff--\r\n------form7\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'------form7\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n------form7--\r\n'
)
FORM_TYPE = "multipart/form-data; boundary=----form7"

INFERENCE = [
    "chat/completions",
    "completions",
    "embeddings",
    "responses",
    "responses/input_tokens",
    "messages",
    "messages/count_tokens",
    "rerank",
    "score",
    "classify",
    "pooling",
    "tokenize",
    "detokenize",
    "audio/transcriptions",
    "audio/translations",
    "audio/speech",
    "images/generations",
    "something/new",
]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        *((f"/v1/{name}".encode(), Surface.INFERENCE) for name in INFERENCE),
        *((path, Surface.INFERENCE) for path in (b"/tokenize", b"/detokenize", b"/rerank", b"/v2/rerank", b"/score")),
        (b"/v1/responses/resp_1", Surface.STORED),
        (b"/v1/responses/resp_1/cancel", Surface.STORED),
        (b"/v1/responses/resp_1/input_items", Surface.STORED),
        (b"/v1/models", Surface.MODELS),
        (b"/v1/models/", Surface.MODELS),
        (b"/v1/models/org/Name", Surface.MODEL),
        (b"/v1/models/org//Name", Surface.MALFORMED),
        (b"/v1/responses/../models", Surface.MALFORMED),
        (b"/v1/responses//cancel", Surface.MALFORMED),
        (b"/v1", Surface.NOTHING),
        (b"/metrics", Surface.NOTHING),
        (b"/pause", Surface.NOTHING),
        (b"/V1/chat/completions", Surface.NOTHING),
        (b"/v1/Load_LoRA_adapter/", Surface.NOTHING),
        (b"*", Surface.NOTHING),
    ],
)
def test_every_path_is_one_thing(path: bytes, kind: Surface) -> None:
    assert surface(path) is kind


def test_a_stored_object_has_a_name() -> None:
    assert stored_object(b"/v1/responses/resp_1/input_items") == "resp_1"
    assert stored_object(b"/v1/responses/input_tokens") == ""
    assert stored_object(b"/v1/responses") == ""


@pytest.mark.parametrize("name", INFERENCE)
async def test_beat_06_every_surface_goes_to_the_engine_byte_for_byte(rig: Rig, name: str) -> None:
    engine = await rig.engine()
    await rig.start()
    body = b'{ "seed" : 9007199254740993,\r\n\t"x":1.10,"model":"m","model_":{"model":"z"},"a":1,"a":2 }'
    answer = await rig.ask(post(body, f"/v1/{name}?a=%20b", x_extra="kept"))
    assert (answer.status, answer.body) == (200, b'{"ok":true}')
    assert engine.asked[0].body == body
    assert engine.asked[0].headers[b"x-extra"] == b"kept"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","prompt":["a","b"]}',
        b'{"model":"m","prompt":[1,2,3]}',
        b'{"model":"m","prompt":[[1],[2]]}',
        b'{"model":"m","input":["a","b"]}',
    ],
)
async def test_beat_05_list_and_token_prompts_are_routed(rig: Rig, body: bytes) -> None:
    engine = await rig.engine()
    await rig.start()
    assert (await rig.ask(post(body, "/v1/completions"))).status == 200
    assert engine.asked[0].body == body


async def test_beat_12_stream_options_are_the_clients_own(rig: Rig) -> None:
    """What is asked for where a client says nothing, and stays unseen by it, is tested with the hidden usage."""
    engine = await rig.engine()
    await rig.start()
    for options in (b'{"continuous_usage_stats":true}', b'{"include_usage":false}', b"{}"):
        body = b'{"model":"m","stream":true,"stream_options":' + options + b"}"
        await rig.ask(post(body))
        assert engine.asked[-1].body == body


@pytest.mark.parametrize(
    ("engine_name", "asked", "sent"),
    [
        ("vLLM", "/v1/tokenize", b"/tokenize"),
        ("vLLM", "/v1/pooling?x=1", b"/pooling?x=1"),
        ("vLLM", "/tokenize", b"/tokenize"),
        ("vLLM", "/v1/rerank", b"/v1/rerank"),
        ("LlamaCpp", "/v1/detokenize", b"/detokenize"),
        ("SGLang", "/v1/tokenize", b"/v1/tokenize"),
        ("SGLang", "/score", b"/v1/score"),
    ],
)
async def test_an_engine_is_asked_at_the_path_that_it_has(rig: Rig, engine_name: str, asked: str, sent: bytes) -> None:
    engine = await rig.engine()
    rig.engine_name = engine_name
    await rig.start()
    assert (await rig.ask(post(path=asked))).status == 200
    assert engine.asked[0].line == b"POST " + sent + b" HTTP/1.1"


async def test_a_form_is_passed_on_as_it_is(rig: Rig) -> None:
    engine = await rig.engine()
    await rig.start()
    assert (await rig.ask(post(FORM, "/v1/audio/transcriptions", content_type=FORM_TYPE))).status == 200
    assert engine.asked[0].body == FORM
    assert engine.asked[0].headers[b"content-type"] == FORM_TYPE.encode()
    assert (await rig.record()).stream


async def test_the_model_of_a_form_is_spliced_and_nothing_else(rig: Rig) -> None:
    engine = await rig.engine()
    rig.model = "a/much-longer-name"
    await rig.start()
    assert (await rig.ask(post(FORM, "/v1/audio/transcriptions", content_type=FORM_TYPE))).status == 200
    sent = engine.asked[0]
    assert sent.body == FORM.replace(b"\r\n\r\nm\r\n", b"\r\n\r\na/much-longer-name\r\n")
    assert int(sent.headers[b"content-length"]) == len(sent.body)
    assert sent.headers[b"content-type"] == FORM_TYPE.encode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_form_at_a_path_of_json_is_the_engines_to_refuse(rig: Rig, path: str) -> None:
    """It says `stream`, yet nothing may be written into it."""
    engine = await rig.engine()
    await rig.start()
    assert (await rig.ask(post(FORM, path, content_type=FORM_TYPE))).status == 200
    assert engine.asked[0].body == FORM


async def test_a_form_whose_model_is_not_certain_reaches_no_engine(rig: Rig) -> None:
    engine = await rig.engine()
    await rig.start()
    twice = FORM.replace(b'name="stream"', b'name="model"')
    answer = await rig.ask(post(twice, "/v1/audio/transcriptions", content_type=FORM_TYPE))
    assert (answer.status, answer.error["param"]) == (400, "model")
    assert engine.asked == []


# -- methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/models", b"GET, HEAD, OPTIONS"),
        ("/v1/chat/completions", b"POST, OPTIONS"),
        ("/healthz", b"GET, HEAD, OPTIONS"),
    ],
)
async def test_options_says_what_is_allowed(rig: Rig, path: str, allow: bytes) -> None:
    await rig.start()
    answer = await rig.ask(f"OPTIONS {path} HTTP/1.1\r\nhost: gw\r\nconnection: close\r\n\r\n".encode())
    assert (answer.status, answer.headers[b"allow"], answer.body) == (204, allow, b"")


@pytest.mark.parametrize(("path", "status"), [("/v1/models", 200), ("/v1/models/nobody", 404), ("/nothing", 404)])
async def test_head_has_the_length_of_a_body_and_none(rig: Rig, path: str, status: int) -> None:
    """A body behind a head that has none would be read as the next answer."""
    await rig.engine()
    await rig.start()
    client = await rig.client()
    client.send(f"HEAD {path} HTTP/1.1\r\nhost: gw\r\n\r\n".encode())
    got, headers = await client.head()
    assert got == status
    assert int(headers[b"content-length"]) > 0
    client.send(post())
    assert (await client.answer()).body == b'{"ok":true}'


async def test_beat_04_models_are_listed_and_found_by_names_with_slashes(rig: Rig) -> None:
    await rig.engine()
    rig.name = "org/Name"
    await rig.start()
    for path in ("/v1/models/org/Name", "/v1/models/org%2FName"):
        answer = await rig.ask(f"GET {path} HTTP/1.1\r\nhost: gw\r\n\r\n".encode())
        assert msgspec.json.decode(answer.body)["id"] == "org/Name"


# -- errors -------------------------------------------------------------------------------------------------------


def anthropic(answer: Any) -> dict[str, Any]:
    document = dict(msgspec.json.decode(answer.body))
    assert document["type"] == "error"
    assert document["request_id"].encode() == answer.headers[b"x-request-id"]
    return dict(document["error"])


@pytest.mark.parametrize(
    ("request_bytes", "status", "kind"),
    [
        (post(b"{}", "/v1/messages"), 400, "invalid_request_error"),
        (post(b'{"model":"nobody"}', "/v1/messages"), 404, "not_found_error"),
        (post(path="/v1/messages/count_tokens"), 503, "overloaded_error"),
        (b"GET /v1/messages HTTP/1.1\r\nhost: gw\r\n\r\n", 405, "invalid_request_error"),
        (b"POST /v1/messages HTTP/1.1\r\nhost: gw\r\ncontent-length: 99999999999\r\n\r\n", 413, "request_too_large"),
    ],
)
async def test_errors_of_messages_are_in_anthropics_form(
    rig: Rig, request_bytes: bytes, status: int, kind: str
) -> None:
    await rig.start()
    answer = await rig.ask(request_bytes)
    assert answer.status == status
    assert anthropic(answer)["type"] == kind
    assert anthropic(answer)["message"]


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def events(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    found = re.findall(rb"(?:event: (\w+)\n)?data: (\{.*\})\n\n", body)
    return [(name.decode(), msgspec.json.decode(data)) for name, data in found]


@pytest.mark.parametrize(
    ("path", "name"), [("/v1/messages", "error"), ("/v1/responses", "error"), ("/v1/chat/completions", "")]
)
async def test_a_broken_stream_ends_with_an_error_of_its_dialect(rig: Rig, path: str, name: str) -> None:
    """The answer's own media type decides, not what the request said (BEAT-19)."""

    async def breaks(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"d\r\ndata: {}\n\ndat\r\n")
        await writer.drain()
        writer.close()

    await rig.engine(breaks)
    await rig.start()
    answer = await rig.ask(post(path=path))
    assert not answer.complete
    got, document = events(answer.body)[-1]
    assert got == name
    assert document["error"]["message"]
    assert document.get("type", "") == name
    assert ("request_id" in document) == (path == "/v1/messages")


async def test_beat_15_a_request_id_comes_back_on_every_answer(rig: Rig) -> None:
    await rig.engine(answering(OK.replace(b"content-length", b"x-request-id: engine\r\ncontent-length")))
    await rig.start()
    for request in (
        post(x_request_id="mine"),
        post(b"{}", x_request_id="mine"),
        b"GET /v1/models HTTP/1.1\r\nhost: gw\r\nx-request-id: mine\r\n\r\n",
        b"OPTIONS /v1/models HTTP/1.1\r\nhost: gw\r\nx-request-id: mine\r\nconnection: close\r\n\r\n",
        # Refused before it was a request.
        b"GET / HTTP/1.1\r\nhost: gw\r\nx-request-id: mine\r\nexpect: tea\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: gw\r\nx-request-id: mine\r\ncontent-length: 99999999999\r\n\r\n",
    ):
        assert (await rig.ask(request)).headers[b"x-request-id"] == b"mine"
    for request in (post(), post(x_request_id="white space"), post(x_request_id="x" * 129), b"nonsense\r\n\r\n"):
        assert (await rig.ask(request)).headers[b"x-request-id"].startswith(b"made-")
