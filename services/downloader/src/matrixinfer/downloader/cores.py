"""How many cores this process may use: those that it may run on, less when its container is limited to a share of them.

The format of the limit: Documentation/admin-guide/cgroup-v2.rst of Linux, "cpu.max".
"""

import os
from pathlib import Path

__all__ = ["usable_cores"]

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(limit: Path = _CPU_MAX) -> float:
    """Return a number of cores, not always a whole one; a limit that cannot be read is none."""
    allowed = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = limit.read_text().split()
        return allowed if quota == "max" else min(allowed, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return allowed
