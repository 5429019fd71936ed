"""The body: what is read of it, and what an edit leaves alone."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.gateway.core.peek import BodyError, Peek, peek
from matrixinfer.gateway.core.splice import with_model


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"m"}', Peek("m", stream=False)),
        (b'{"model":"m","stream":true}', Peek("m", stream=True)),
        (b'{"stream": true ,"model":"org/Name"}', Peek("org/Name", stream=True)),
        (b'{"model":"m","stream":"true"}', Peek("m", stream=False)),
        (b'{"model":"m","stream":null,"seed":9007199254740993}', Peek("m", stream=False)),
        (b'{"mod\\u0065l":"m"}', Peek("m", stream=False)),
        (b'{"model":"a","model":"b"}', Peek("b", stream=False)),
    ],
)
def test_model_and_stream_are_read(body: bytes, expected: Peek) -> None:
    assert peek(body) == expected


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "no body"),
        (b"{}", "model", "must provide"),
        (b'{"model":""}', "model", "must provide"),
        (b'{"model":"  "}', "model", "must provide"),
        (b'{"model":null}', "model", "must provide"),
        (b'{"model":5}', "model", "must be a string"),
        (b'["model"]', None, "JSON object"),
        (b'{"model":"m"} x', None, "not valid JSON"),
        (b'{"model":"m",}', None, "not valid JSON"),
        (b"model=m", None, "not valid JSON"),
        (b'{"model":"\xff"}', None, "not valid JSON"),
        (b'{"model":"m","x":' + b"[" * 5000 + b"]" * 5000 + b"}", None, "nested"),
    ],
)
def test_a_body_that_cannot_be_routed_is_refused_with_a_sentence(body: bytes, param: str | None, words: str) -> None:
    with pytest.raises(BodyError, match=words) as refused:
        peek(body)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a"}', b'{"model":"b"}'),
        (b'{ "x" : {"model":"a"}, "model" \t: "a" , "y":1}', b'{ "x" : {"model":"a"}, "model" \t: "b" , "y":1}'),
        (b'{"x":"model","model":"a"}', b'{"x":"model","model":"b"}'),
        (b'{"x":["model","model"],"model":"a"}', b'{"x":["model","model"],"model":"b"}'),
        (b'{"model":"a","model":"c"}', b'{"model":"b","model":"b"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"b"}'),
        (b'{"x":"\\"model\\":\\"z\\"","model":"a"}', b'{"x":"\\"model\\":\\"z\\"","model":"b"}'),
        (b'{"seed":9007199254740993,"model":"a\\"c","t":1.0e5}', b'{"seed":9007199254740993,"model":"b","t":1.0e5}'),
    ],
)
def test_only_the_value_of_the_model_changes(body: bytes, expected: bytes) -> None:
    assert with_model(body, "b") == expected


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["model", '"model":"x"', "a\\"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just("model"), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text() | st.just("mo"), _json, max_size=5), st.text(min_size=1), st.booleans(), st.integers(0, 5)
)
def test_a_splice_equals_decode_and_encode(members: dict[str, Any], model: str, ascii_only: bool, at: int) -> None:
    """Whatever else the body holds: the splice means what decoding, setting and encoding would mean."""
    members.pop("model", None)
    items = list(members.items())
    items.insert(at, ("model", "before \"'\\ é"))
    body = json.dumps(dict(items), ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    wanted = {**dict(items), "model": model}
    try:
        model.encode()
    except UnicodeEncodeError:
        return
    assert json.loads(with_model(body, model)) == wanted


_space = st.text(" \t\r\n", max_size=3)


@st.composite
def _texts(draw: st.DrawFn) -> tuple[str, ...]:
    """Pieces of one JSON object as a client might write it; between two of them stands the model's value."""
    name = st.sampled_from(['"model"', '"mod\\u0065l"', '"\\u006dodel"'])
    others = st.sampled_from(
        [
            '"seed":9007199254740993',
            '"t" : 1.10e+05',
            '"model_":"model"',
            '"x":{"model":"no","y":[{"model":1}]}',
            '"x":"\\"model\\":\\"no\\""',
            '"\\u00e9":"é\\ud83d\\ude00"',
            '"":[[],{},null,-0.0]',
        ]
    )
    members = draw(st.lists(st.tuples(st.just(False), others) | st.tuples(st.just(True), name), min_size=1, max_size=6))
    pieces, text = [], draw(_space) + "{"
    for at, (is_model, member) in enumerate(members):
        text += ("," if at else "") + draw(_space) + member
        if is_model:
            pieces.append(text + draw(_space) + ":" + draw(_space))
            text = ""
        text += draw(_space)
    return (*pieces, text + "}" + draw(_space))


@given(_texts(), st.text(min_size=1), st.text(min_size=1))
def test_beat_10_a_splice_leaves_every_byte_that_is_not_the_models_value(
    pieces: tuple[str, ...], before: str, after: str
) -> None:
    """Duplicates, escapes, big numbers, spaces: it is what the client would have written with the other name."""
    for name in (before, after):
        try:
            name.encode()
        except UnicodeEncodeError:
            return

    def written(model: str) -> bytes:
        return msgspec.json.encode(model).join(piece.encode() for piece in pieces)

    assert with_model(written(before), after) == written(after)


@pytest.mark.parametrize("length", [512, 513])
def test_a_name_that_can_be_no_models_is_refused_without_repeating_it(length: int) -> None:
    body = b'{"model":"%s"}' % (b"x" * length)
    if length == 512:
        assert peek(body).model == "x" * 512
        return
    with pytest.raises(BodyError, match="at most 512") as refused:
        peek(body)
    assert refused.value.param == "model"
    assert len(str(refused.value)) < 100
