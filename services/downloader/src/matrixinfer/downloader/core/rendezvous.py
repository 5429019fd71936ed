"""Who of several fetches what from the origin, agreed upon without a word. Pure.

Rendezvous hashing: everybody computes the same owner of a chunk from the same members, each owns about the same share,
and when a member goes only its chunks move, to owners that all agree upon again. The trap: members are what each pod
sees, so two pods may disagree for a moment; then both fetch a chunk, which costs its bytes and nothing else.
"""

from collections.abc import Collection, Iterable
from hashlib import sha256

__all__ = ["owner", "ranked"]


def owner(chunk: str, members: Collection[str]) -> str:
    """Return the member that fetches a chunk from the origin; there must be one."""
    return max(members, key=lambda member: _weight(chunk, member))


def ranked(key: str, members: Iterable[str]) -> list[str]:
    """Return the members, best first, in an order that all agree upon."""
    return sorted(members, key=lambda member: _weight(key, member), reverse=True)


def _weight(key: str, member: str) -> bytes:
    return sha256(f"{key}\n{member}".encode()).digest()
