"""What no form may do to the gateway. `check` raises when one does.

A form that we accept names the model that the standard library's parser reads, once; and an edit of its model is read
back by both, with every other part as it was.
"""

from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP

from matrixinfer.gateway.core.form import form_boundary, form_parts, peek_form, with_form_model
from matrixinfer.gateway.core.peek import BodyError

CONTENT_TYPE = b"multipart/form-data; boundary=x"
_MODEL = "another/model"


def check(data: bytes) -> None:
    """The input is the body of a form with the boundary `x`."""
    boundary = form_boundary(CONTENT_TYPE)
    try:
        read = peek_form(data, boundary)
        parts = list(form_parts(data, boundary))
    except BodyError:
        return
    assert _models(data) == [read.model], f"two parsers read two models: {read.model!r} and {_models(data)!r}"
    edited = with_form_model(data, boundary, _MODEL)
    again = list(form_parts(edited, boundary))
    assert peek_form(edited, boundary).model == _MODEL
    assert _models(edited) == [_MODEL]
    assert len(again) == len(parts)
    for before, after in zip(parts, again, strict=True):
        assert (before.name, before.is_file) == (after.name, after.is_file)
        if before.name != "model":
            assert data[before.start : before.end] == edited[after.start : after.end]


def _models(data: bytes) -> list[str]:
    message = BytesParser(EmailMessage, policy=HTTP).parsebytes(b"Content-Type: " + CONTENT_TYPE + b"\r\n\r\n" + data)
    return [
        (part.get_payload(decode=True) or b"").decode(errors="replace")
        for part in message.iter_parts()
        if part.get_param("name", header="content-disposition") == "model"
    ]
