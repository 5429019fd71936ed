"""What the pages of the admin port show, apart from who serves them: what opens no port loads no HTTP library."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

__all__ = ["Lookup", "MetricsPage", "Page", "task_page"]

MetricsPage: TypeAlias = Callable[[Mapping[str, str]], tuple[bytes, str]]
"""Takes the request headers, returns body and content type of /metrics."""

Page: TypeAlias = Callable[[], object]
"""Returns what a debug page shows: anything that has a JSON form."""

Lookup: TypeAlias = Callable[[str], Awaitable[object | None]]
"""Returns what a debug page shows of one thing, by its name; None when there is no such thing."""


def task_page() -> object:
    """Every asyncio task and the line it waits at: the first thing to read when something hangs."""
    return [
        {"name": task.get_name(), "waits_at": [f"{f.f_code.co_qualname}:{f.f_lineno}" for f in task.get_stack(limit=4)]}
        for task in asyncio.all_tasks()
    ]
