"""Edits of a JSON body as byte splices: one member changes, every other byte stays as the client wrote it.

Works on bodies that `peek` accepted: one well-formed object whose `model` members are strings. The trap: a member may
appear twice or with an escaped name, and parsers differ on which one counts, so all of them are replaced.
"""

import re
from collections.abc import Iterator

import msgspec

__all__ = ["with_model"]

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]:,]', re.DOTALL)
_PLAIN_MEMBER = re.compile(rb'"model"[ \t\r\n]*+:[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")', re.DOTALL)


def with_model(body: bytes, model: str) -> bytes:
    """Return `body` with the value of its top-level `model` member replaced by `model`."""
    value = msgspec.json.encode(model)
    pieces: list[bytes] = []
    at = 0
    for start, end in _model_spans(body):
        pieces += (body[at:start], value)
        at = end
    return b"".join((*pieces, body[at:]))


def _model_spans(body: bytes) -> Iterator[tuple[int, int]]:
    # Without an escape, a name that occurs once is the member itself: no need to walk the whole body.
    if body.count(b'"model"') == 1 and b"\\u" not in body and (found := _PLAIN_MEMBER.search(body)):
        yield found.span(1)
        return
    yield from _walked_spans(body)


def _walked_spans(body: bytes) -> Iterator[tuple[int, int]]:
    depth, expects_name, is_model = 0, False, False
    for token in _TOKEN.finditer(body):
        text = token.group()
        if text in b"{[":
            depth += 1
            expects_name = depth == 1
        elif text in b"}]":
            depth -= 1
        elif depth != 1:
            continue
        elif text == b",":
            expects_name = True
        elif text == b":":
            expects_name = False
        elif expects_name:
            is_model = msgspec.json.decode(text) == "model"
        elif is_model:
            is_model = False
            yield token.span()
