"""Which worker process fetches which files, and with how many connections. Pure.

Threads of one process share one interpreter's lock: however many cores there are, it does for some 1,000 small files or
4 GB in a second. A process more takes some milliseconds and megabytes, so there are none on a small machine or for a
small download. The trap: a file belongs to one worker from start to end, so the connections follow the work that is
left; else who has the biggest file would end it alone, with its share of the connections, while the others' are idle.
"""

from collections.abc import Sequence

from matrixinfer.downloader.core.manifest import SourceFile

__all__ = ["allowances", "deal", "process_count", "worth"]

# Below, one process keeps the cores busy.
_FEWEST_CORES = 4
_CORES_OF_EACH = 2
_MOST = 8
# What a small file costs beside its bytes: the lock is held for as long as for so many of them.
_FILE_WORTH = 4 << 20
# What is worth a process.
_LEAST_WORTH = 256 << 20


def process_count(cores: float, connections: int, wanted: int) -> int:
    """Return how many workers there may be, 0 for none; `wanted` is what was asked for, 0 for what fits the cores."""
    fitting = min(_MOST, int(cores / _CORES_OF_EACH)) if cores >= _FEWEST_CORES else 0
    count = min(wanted or fitting, connections)
    return count if count > 1 else 0


def worth(file_count: int, byte_count: int) -> int:
    """Return how much work so many files are, in bytes of a big one."""
    return byte_count + file_count * _FILE_WORTH


def deal(files: Sequence[SourceFile], most: int) -> Sequence[Sequence[SourceFile]]:
    """Return about equal shares of the work, at most so many; none where one process does as well."""
    total = worth(len(files), sum(file.size for file in files))
    count = min(most, len(files), total // _LEAST_WORTH)
    if count < 2:
        return ()
    shares: list[list[SourceFile]] = [[] for _ in range(count)]
    loads = [0] * count
    for file in sorted(files, key=lambda file: (-file.size, file.path)):
        least = loads.index(min(loads))
        shares[least].append(file)
        loads[least] += worth(1, file.size)
    return shares


def allowances(left: Sequence[int], connections: int) -> Sequence[int]:
    """Divide the connections by the work that is left: one for each that has any, the rest in proportion."""
    working = sum(1 for amount in left if amount > 0)
    total, rest = sum(left), max(0, connections - working)
    return [1 + rest * amount // total if amount > 0 else 0 for amount in left]
