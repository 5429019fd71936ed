"""Which models of a cache may go, when there is too little room. Pure.

Least recently used first, and only what nothing refers to: no link of a version, no run that has just asked for it. The
trap: models share blobs, so what one frees is only what no other model that stays needs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Shelved", "room_to_make", "to_evict"]


@dataclass(frozen=True, slots=True)
class Shelved:
    """One model of a cache: its contents with their sizes, its last use, and whether something refers to it."""

    digest: str
    blobs: Mapping[str, int]
    used: float
    is_referenced: bool


def room_to_make(*, free_bytes: int, total_bytes: int, needed_bytes: int, reserve_bytes: int, high_water: int) -> int:
    """Return how many bytes must go so that `needed_bytes` fit below the high-water mark, in percent of the volume."""
    below_mark = free_bytes - total_bytes * (100 - high_water) // 100
    return max(0, needed_bytes - min(below_mark, free_bytes - reserve_bytes))


def to_evict(models: Sequence[Shelved], loose: Mapping[str, int], missing: int, kept: Collection[str]) -> Sequence[str]:
    """Return the digests to remove so that `missing` bytes come free, as far as that goes, oldest first.

    `loose` are blobs that no model names: they go first, and with them what they hold. `kept` are never removed.
    """
    freed = sum(loose.values())
    staying = {model.digest: model for model in models}
    evicted: list[str] = []
    for model in sorted(models, key=lambda m: (m.used, m.digest)):
        if freed >= missing:
            break
        if model.is_referenced or model.digest in kept:
            continue
        del staying[model.digest]
        needed = {blob for other in staying.values() for blob in other.blobs}
        freed += sum(size for blob, size in model.blobs.items() if blob not in needed)
        evicted.append(model.digest)
    return evicted
