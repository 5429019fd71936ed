"""The wire form of lists and watches, decoded only as far as needed to find the objects in it.

Objects stay raw bytes, so that each is decoded once, by the projection of whoever asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import orjson

from matrixinfer.kube.errors import ApiError, error_from_status

__all__ = ["ADDED", "BOOKMARK", "DELETED", "MODIFIED", "Page", "WatchEvent", "parse_event", "parse_page"]

ADDED: Final = "ADDED"
MODIFIED: Final = "MODIFIED"
DELETED: Final = "DELETED"
BOOKMARK: Final = "BOOKMARK"
_ERROR: Final = "ERROR"


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; an empty `next_token` marks the last one."""

    items: Sequence[bytes]
    resource_version: str
    next_token: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One line of a watch. `raw` is the object; of a bookmark only its resourceVersion means anything."""

    type: str
    raw: bytes
    resource_version: str


class _ListMeta(msgspec.Struct, rename={"resource_version": "resourceVersion", "next_token": "continue"}):
    resource_version: str = ""
    next_token: str = ""


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _ObjectMeta(msgspec.Struct, rename={"resource_version": "resourceVersion"}):
    resource_version: str = ""


class _Object(msgspec.Struct):
    metadata: _ObjectMeta = msgspec.field(default_factory=_ObjectMeta)


_decode_list = msgspec.json.Decoder(_List).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_object = msgspec.json.Decoder(_Object).decode


def parse_page(raw: bytes) -> Page:
    """Return the page; raises ApiError when the body is no list."""
    try:
        page = _decode_list(raw)
    except msgspec.MsgspecError as exc:
        raise ApiError(200, "Undecodable", f"the answer to a list is no list: {exc}") from exc
    return Page([bytes(item) for item in page.items or ()], page.metadata.resource_version, page.metadata.next_token)


def parse_event(line: bytes) -> WatchEvent:
    """Return the event; raises what an ERROR event carries (`Gone` for 410), or ApiError when it is no event."""
    try:
        event = _decode_event(line)
        if event.type == _ERROR:
            status = orjson.loads(bytes(event.object))
            raise error_from_status(500, status if isinstance(status, dict) else {})
        version = _decode_object(event.object).metadata.resource_version
    except (msgspec.MsgspecError, orjson.JSONDecodeError) as exc:
        raise ApiError(200, "Undecodable", f"a line of a watch is no event: {exc}") from exc
    return WatchEvent(event.type, bytes(event.object), version)
