"""multipart/form-data: what is read of it, what is refused, and what an edit leaves alone."""

from email.parser import BytesParser
from email.policy import HTTP

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from matrixinfer.gateway.core.form import form_boundary, form_parts, peek_form, with_form_model
from matrixinfer.gateway.core.peek import BodyError, Peek

B = b"x-boundary"


def part(name: str, content: bytes, *, filename: str | None = None, extra: str = "") -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    return f'Content-Disposition: form-data; name="{name}"{file}\r\n{extra}\r\n'.encode() + content


def form(*parts: bytes, boundary: bytes = B, end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + one + b"\r\n" for one in parts) + b"--" + boundary + end


AUDIO = part("file", bytes(range(256)) * 3, filename="a.wav", extra="Content-Type: audio/wav\r\n")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (form(AUDIO, part("model", b"m")), Peek("m", stream=False)),
        (form(part("model", b"org/Name"), part("stream", b"true"), AUDIO), Peek("org/Name", stream=True)),
        (form(part("stream", b"False"), part("model", "é".encode()), end=b"--"), Peek("é", stream=False)),
        (form(part("a[]", b"1"), part("a[]", b"2"), part("model", b"m")), Peek("m", stream=False)),
        (form(b"content-disposition:form-data;name=model\r\n\r\nm"), Peek("m", stream=False)),
        (form(part("file", b"--x-boundar\r\nab --x-boundary", filename="f"), part("model", b"m")), Peek("m", False)),
        (form(part("empty", b""), part("model", b"m")), Peek("m", stream=False)),
    ],
)
def test_model_and_stream_are_read(body: bytes, expected: Peek) -> None:
    read = peek_form(body, B)
    assert (read.model, read.stream) == (expected.model, expected.stream)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "begin with its boundary"),
        (b"preamble\r\n" + form(part("model", b"m")), "begin with its boundary"),
        (b"\r\n" + form(part("model", b"m")), "begin with its boundary"),
        (form(part("model", b"m")).replace(b"\r\n", b"\n"), "begin with its boundary"),
        (form(part("model", b"m"), end=b""), "occurs within a part"),
        (form(part("model", b"m"))[:-8], "does not end"),
        (form(part("model", b"m"), end=b"--\r\nepilogue"), "goes on behind its end"),
        (form(part("model", b"m"), end=b"--\r\n--x-boundary--"), "goes on behind its end"),
        (form(part("model", b"m"), part("model", b"other")), "'model' must occur once"),
        (form(part("model", b"m"), part("stream", b"1"), part("stream", b"0")), "'stream' must occur once"),
        (form(part("model", b"m", filename="model")), "must be a short text"),
        (form(part("model", b"m" * 1025)), "must be a short text"),
        (form(part("model", b"\xff")), "must be UTF-8"),
        (form(part("model", b" ")), "must provide"),
        (form(AUDIO), "must provide"),
        # A lenient parser ends the line, and the part, somewhere else.
        (
            form(part("file", b"a\n--x-boundary\r\n" + part("model", b"evil"), filename="f"), part("model", b"m")),
            "within",
        ),
        (form(part("file", b"a\r--x-boundary\r\n", filename="f"), part("model", b"m")), "within a part"),
        (form(part("file", b"--x-boundary\r\n", filename="f"), part("model", b"m")), "within a part"),
        (form(part("file", b"a\r\n--x-boundary-longer\r\nb", filename="f"), part("model", b"m")), "within a part"),
        (form(part("file", b"a\r\n--x-boundary \r\nb", filename="f"), part("model", b"m")), "within a part"),
        (form(b'Content-Disposition: form-data; name="model"\n\r\n\r\nm'), "malformed header"),
        (form(b'Content-Disposition: form-data;\r\n name="model"\r\n\r\nm'), "malformed header"),
        (form(b'Content-Disposition : form-data; name="model"\r\n\r\nm'), "malformed header"),
        (form(part("model", b"m", extra="Content-Disposition: form-data; name=x\r\n")), "two Content-Disposition"),
        (form(part("model", b"bQ==", extra="Content-Transfer-Encoding: base64\r\n")), "Content-Transfer-Encoding"),
        (form(b'Content-Disposition: form-data; name="x"; name="model"\r\n\r\nm'), "one plain name"),
        (form(b"Content-Disposition: form-data; name=x; name*=utf-8''model\r\n\r\nm"), "one plain name"),
        (form(b'Content-Disposition: form-data; name="mod\\el"\r\n\r\nm'), "one plain name"),
        (form(b"Content-Disposition: attachment; name=model\r\n\r\nm"), "no Content-Disposition"),
        (form(b"Content-Type: text/plain\r\n\r\nm"), "no Content-Disposition"),
        (form(b"\r\nm"), "no head that ends"),
        (form(b"X: " + b"y" * 9000 + b"\r\n\r\nm"), "too large"),
        (form(*[part("a", b"")] * 257, part("model", b"m")), "more than 256 parts"),
    ],
)
def test_a_form_that_two_parsers_could_read_differently_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(BodyError, match=words):
        peek_form(body, B)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'Multipart/Form-Data;boundary="a b:c"', b"a b:c"),
        (b"multipart/form-data; charset=utf-8; Boundary=----WebKitFormBoundary7MA", b"----WebKitFormBoundary7MA"),
    ],
)
def test_the_boundary_is_read(content_type: bytes, boundary: bytes) -> None:
    assert form_boundary(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b'multipart/form-data; boundary="ends with space "',
        b"multipart/form-data; boundary=" + b"a" * 71,
        b"multipart/form-data; boundary=a; boundary=b",
        b"multipart/form-data; boundary=a;",
        b"multipart/form-data; boundary=a, multipart/form-data; boundary=b",
        b'multipart/form-data; boundary="a\\"b"',
        b'multipart/form-data; boundary="a',
        b"multipart/mixed; boundary=a",
    ],
)
def test_a_boundary_that_is_not_plain_is_refused(content_type: bytes) -> None:
    with pytest.raises(BodyError, match="boundary"):
        form_boundary(content_type)


_names = st.text(st.characters(codec="utf-8", exclude_characters='"\\', exclude_categories=["Cc"]), min_size=1)
_contents = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"--", b"\r\n--x-bound", b"\n\n--"])


@given(
    st.lists(st.tuples(_names.filter(lambda n: n not in ("model", "stream")), _contents), max_size=5),
    st.integers(0, 5),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1).filter(str.strip),
)
@example([("a", b"")], 1, "other")
def test_a_splice_equals_writing_the_form_anew(others: list[tuple[str, bytes]], at: int, model: str) -> None:
    """Of every form, whatever its parts hold, an edit changes the model and nothing else."""

    def written(name: str) -> bytes:
        parts = [part(key, content) for key, content in others]
        parts.insert(at, part("model", name.encode()))
        return form(*parts)

    before = written("before")
    assert peek_form(before, B).model == "before"
    after = with_form_model(before, B, model)
    assert after == written(model)
    assert peek_form(after, B).model == model
    assert len(list(form_parts(after, B))) == len(others) + 1


@given(st.data())
def test_what_is_accepted_means_the_same_to_another_parser(data: st.DataObject) -> None:
    """Break a good form anywhere: it is refused, or the standard library reads the same model from it."""
    good = form(AUDIO, part("model", b"mmm"), part("stream", b"true"))
    at = data.draw(st.integers(0, len(good)))
    cut = data.draw(st.integers(0, 3))
    piece = data.draw(st.sampled_from([b"", b"\r", b"\n", b"\r\n", b'"', b";", b"--", b"--x-boundary", b"\0", b" "]))
    body = good[:at] + piece + good[at + cut :]
    try:
        read = peek_form(body, B)
    except BodyError:
        return
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: multipart/form-data; boundary=" + B + b"\r\n\r\n" + body
    )
    models = [
        one.get_payload(decode=True)
        for one in message.iter_parts()
        if one.get_param("name", header="content-disposition") == "model"
    ]
    assert models == [read.model.encode()]
