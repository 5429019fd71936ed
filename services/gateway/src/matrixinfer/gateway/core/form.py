"""multipart/form-data as far as routing needs it: where the parts lie, and the text of those that are read. Pure.

The body stays where it is: parts are spans, found by searching for the delimiter, and nothing is copied but the values
that are read. The trap: lenient parsers disagree about preambles, bare line feeds, padding behind a delimiter and
repeated parts. A form that two of them could read differently is refused, so engine and gateway always see one model.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from matrixinfer.gateway.core.peek import BodyError, Peek, model_name

__all__ = ["Part", "form_boundary", "form_parts", "is_multipart", "peek_form", "with_form_model"]

_PARTS_LIMIT = 256
_HEAD_LIMIT_BYTES = 8 * 1024
_VALUE_LIMIT_BYTES = 1024

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER = re.compile(
    rb";[ \t]*+(" + _TOKEN + rb')[ \t]*+=[ \t]*+(?:"((?:[^"\\\x00-\x1f\x7f]|\\.)*+)"|(' + _TOKEN + rb"))[ \t]*+"
)
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)")
# RFC 2046, section 5.1.1: at most 70 characters, the last one no space.
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_IDENTITY = (b"7bit", b"8bit", b"binary")
# How pydantic, and so every engine in Python, reads a truth from a form.
_TRUE = frozenset({b"true", b"1", b"on", b"yes", b"t", b"y"})


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a form; its content is `body[start:end]`."""

    name: str
    is_file: bool
    start: int
    end: int


def is_multipart(content_type: bytes) -> bool:
    """Whether a content type says that the body is a form, or something else in parts."""
    return content_type.lstrip()[:10].lower() == b"multipart/"


def form_boundary(content_type: bytes) -> bytes:
    """Return the boundary that a `multipart/form-data` content type names. Raises BodyError."""
    media, at, _ = content_type.partition(b";")
    parameters = _parameters(at + content_type[len(media) + 1 :])
    found = [value for name, value in parameters or () if name == b"boundary"]
    if media.strip().lower() != b"multipart/form-data" or len(found) != 1 or not _BOUNDARY.fullmatch(found[0]):
        raise BodyError("The Content-Type of a form must be 'multipart/form-data' with one valid 'boundary'.")
    return found[0]


def form_parts(body: bytes, boundary: bytes) -> Iterator[Part]:
    """Yield the parts of a form in order. Raises BodyError where the form is not exactly as RFC 7578 writes one."""
    delimiter = b"--" + boundary
    if not body.startswith(delimiter + b"\r\n"):
        raise BodyError("The form must begin with its boundary.")
    at, count = len(delimiter) + 2, 0
    while True:
        count += 1
        if count > _PARTS_LIMIT:
            raise BodyError(f"The form has more than {_PARTS_LIMIT} parts.")
        head_end = body.find(b"\r\n\r\n", at, at + _HEAD_LIMIT_BYTES)
        if head_end < 0:
            raise BodyError("A part of the form has no head that ends, or one that is too large.")
        name, is_file = _head(body[at:head_end])
        start = head_end + 4
        end = body.find(b"\r\n" + delimiter, start)
        if end < 0:
            raise BodyError("The form does not end with its boundary.")
        if _hides(body, delimiter, start, end):
            raise BodyError("The boundary of the form occurs within a part.")
        yield Part(name, is_file, start, end)
        at = end + 2 + len(delimiter) + 2
        after = body[at - 2 : at]
        if after == b"--":
            if body[at:] not in (b"", b"\r\n"):
                raise BodyError("The form goes on behind its end.")
            return
        if after != b"\r\n":
            raise BodyError("The boundary of the form occurs within a part.")


def peek_form(body: bytes, boundary: bytes) -> Peek:
    """Read the routing parts of a form. Raises BodyError with a sentence for the client."""
    model: str | None = None
    stream: bool | None = None
    for part in form_parts(body, boundary):
        if part.name == "model":
            if model is not None:
                raise BodyError("'model' must occur once.", "model")
            model = _text(body, part)
        elif part.name == "stream":
            if stream is not None:
                raise BodyError("'stream' must occur once.", "stream")
            stream = _text(body, part).strip().lower().encode() in _TRUE
    # Options of a stream are an object of JSON: nobody may write them into a form.
    return Peek(model_name(model), bool(stream), has_stream_options=True)


def with_form_model(body: bytes, boundary: bytes, model: str) -> bytes:
    """Return the form with the content of its part `model` replaced; every other byte stays.

    `body` is one that `peek_form` accepted, `model` a name without line breaks.
    """
    part = next(part for part in form_parts(body, boundary) if part.name == "model")
    return b"".join((body[: part.start], model.encode(), body[part.end :]))


def _head(head: bytes) -> tuple[str, bool]:
    """Name of a part, and whether it is a file. Raises BodyError."""
    disposition: bytes | None = None
    for line in head.split(b"\r\n"):
        header = _HEADER.fullmatch(line)
        if header is None:
            raise BodyError("A part of the form has a malformed header.")
        name, value = header[1].lower(), header[2].strip()
        if name == b"content-disposition":
            if disposition is not None:
                raise BodyError("A part of the form has two Content-Disposition headers.")
            disposition = value
        elif name == b"content-transfer-encoding" and value.lower() not in _IDENTITY:
            raise BodyError("A part of the form has a Content-Transfer-Encoding; send it as it is.")
    return _disposition(disposition or b"")


def _disposition(value: bytes) -> tuple[str, bool]:
    kind, at, _ = value.partition(b";")
    parameters = _parameters(at + value[len(kind) + 1 :])
    if kind.strip().lower() != b"form-data" or parameters is None:
        raise BodyError("A part of the form has no Content-Disposition of the type 'form-data'.")
    names = [text for key, text in parameters if key == b"name"]
    # What a backslash or `name*` means depends on the parser.
    if len(names) != 1 or b"\\" in names[0] or any(key == b"name*" for key, _ in parameters):
        raise BodyError("A part of the form must have one plain name.")
    try:
        name = names[0].decode()
    except UnicodeDecodeError as exc:
        raise BodyError("A part of the form has a name that is not UTF-8.") from exc
    return name, any(key in (b"filename", b"filename*") for key, _ in parameters)


def _parameters(text: bytes) -> list[tuple[bytes, bytes]] | None:
    """Names in lower case with their values, quotes removed; None when the text is not a list of parameters."""
    at, found = 0, []
    while at < len(text):
        parameter = _PARAMETER.match(text, at)
        if parameter is None:
            return None
        value = parameter[2] if parameter[2] is not None else parameter[3]
        found.append((parameter[1].lower(), value))
        at = parameter.end()
    return found


def _hides(body: bytes, delimiter: bytes, start: int, end: int) -> bool:
    """Whether a line of the content begins like a delimiter, for a parser with another idea of lines."""
    at = body.find(delimiter, start, end)
    while at >= 0:
        if at == start or body[at - 1] in b"\r\n":
            return True
        at = body.find(delimiter, at + 1, end)
    return False


def _text(body: bytes, part: Part) -> str:
    if part.is_file or part.end - part.start > _VALUE_LIMIT_BYTES:
        raise BodyError(f"{part.name!r} must be a short text, not a file.", part.name)
    try:
        return body[part.start : part.end].decode()
    except UnicodeDecodeError as exc:
        raise BodyError(f"{part.name!r} must be UTF-8.", part.name) from exc
