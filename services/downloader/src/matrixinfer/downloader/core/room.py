"""Is there room on the volume? Pure.

The trap: some file systems make inodes as they go and report none at all; nothing is concluded from that.
"""

from dataclasses import dataclass

__all__ = ["Room", "human_bytes", "shortage"]

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


@dataclass(frozen=True, slots=True)
class Room:
    """What a volume has left for this user; `inodes` is None where the file system does not count them."""

    free_bytes: int
    inodes: int | None


def shortage(room: Room, *, needed_bytes: int, needed_files: int, reserve_bytes: int) -> str | None:
    """Return None when it fits and `reserve_bytes` stay free, else the sentence that says what is missing."""
    if needed_bytes + reserve_bytes > room.free_bytes:
        missing = needed_bytes + reserve_bytes - room.free_bytes
        return (
            f"the volume has {human_bytes(room.free_bytes)} free, and {human_bytes(needed_bytes)} are still to come "
            f"({human_bytes(reserve_bytes)} must stay free): make it at least {human_bytes(missing)} larger"
        )
    if room.inodes is not None and needed_files > room.inodes:
        return f"the volume has {room.inodes} free inodes, and {needed_files} files are still to come"
    return None


def human_bytes(count: int) -> str:
    """Return a size for people, with binary units: `94.1 MiB`."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, len(_UNITS))
    return f"{count / 1024**power:.1f} {_UNITS[power - 1]}"
