"""Asking an engine for the counts of a stream whose client did not ask, without the client seeing a difference.

`with_usage` adds the option to a request, `HiddenUsage` takes the one event that it causes out of the answer. Only for
engines of which it is known that the option adds this event and changes nothing else, and only where the client said
nothing of `stream_options`: what it said stays as it is. Pure. The traps: an event may come in several pieces and
several events in one, so an event that is not complete yet is held back until it is; and the text of an answer may
speak of prompt_tokens, so what looks like the event is decoded before it is dropped.
"""

import re

import msgspec

__all__ = ["HiddenUsage", "with_usage"]

_OPTION = b'"stream_options":{"include_usage":true},'
_MARK = b'"prompt_tokens"'
_ENDS = (b"\n\n", b"\r\n\r\n")
_END = re.compile(rb"\r?\n\r?\n")
# A count is a few hundred bytes: what grows beyond this is something else.
_HELD_BYTES = 64 * 1024


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw]
    usage: dict[str, msgspec.Raw]


_decoder = msgspec.json.Decoder(_Chunk)


def with_usage(body: bytes) -> bytes:
    """Return `body`, an object with at least one member and without `stream_options`, asking for the counts."""
    at = body.index(b"{") + 1
    return b"".join((body[:at], _OPTION, body[at:]))


class HiddenUsage:
    """The filter of one stream."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun = b""
        """An event of which not all has come."""

    def keep(self, piece: bytes) -> bytes:
        """Return what the client may have of everything that came and was not returned yet."""
        if not self._begun and _MARK not in piece and piece.endswith(_ENDS):
            return piece
        data = self._begun + piece
        kept, at = [], 0
        for end in _END.finditer(data):
            event, at = data[at : end.end()], end.end()
            if not _tells_only_usage(event):
                kept.append(event)
        self._begun = data[at:]
        if len(self._begun) > _HELD_BYTES:
            kept.append(self.rest())
        return b"".join(kept)

    def rest(self) -> bytes:
        """Return what is held back, because no more will come."""
        rest, self._begun = self._begun, b""
        return rest


def _tells_only_usage(event: bytes) -> bool:
    if _MARK not in event:
        return False
    data = b"".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
    try:
        return not _decoder.decode(data).choices
    except ValueError:
        return False
