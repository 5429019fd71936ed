"""Which bytes of a file are still missing. Pure.

A file is noted in parts of one fixed size, so that several connections work on it and a killed process loses little;
one request may bring several of them in a row. Each finished part is one line of the file's journal, with a checksum
(xxh3: it costs a fiftieth of a crc): after a crash of the machine the journal may know of bytes that never reached
the disk. The trap: a torn last line, and lines of another version of the file, must count as nothing.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["FinishedPart", "Part", "finished_parts", "header_line", "part_line", "split"]

_FORMAT = 2


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """Bytes `offset` to `offset + length` of a file."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte after the part."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class FinishedPart:
    """A part that the journal says is on the volume, and the xxh3 it then must have."""

    part: Part
    checksum: int


def split(size: int, part_bytes: int) -> tuple[Part, ...]:
    """Cut a file into parts, in order; an empty file has none."""
    return tuple(Part(offset, min(part_bytes, size - offset)) for offset in range(0, size, part_bytes))


def header_line(path: str, size: int, version: str, part_bytes: int) -> bytes:
    """First line of a journal: what the parts below belong to."""
    return _line({"format": _FORMAT, "path": path, "size": size, "version": version, "partBytes": part_bytes})


def part_line(part: Part, checksum: int) -> bytes:
    """The line that says: this part is on the volume."""
    return _line({"offset": part.offset, "length": part.length, "xxh3": checksum})


def finished_parts(journal: bytes, header: bytes, parts: Iterable[Part]) -> Sequence[FinishedPart]:
    """Return which of `parts` the journal knows as finished; none when it began with another header."""
    if not journal.startswith(header):
        return ()
    wanted = set(parts)
    lines = journal[len(header) :].splitlines(keepends=True)
    found = {part: checksum for line in lines for part, checksum in _read(line)}
    return tuple(FinishedPart(part, checksum) for part, checksum in sorted(found.items()) if part in wanted)


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _read(line: bytes) -> Iterable[tuple[Part, int]]:
    if not line.endswith(b"\n"):
        return
    try:
        value = json.loads(line)
        yield Part(int(value["offset"]), int(value["length"])), int(value["xxh3"])
    except (ValueError, KeyError, TypeError):
        return
