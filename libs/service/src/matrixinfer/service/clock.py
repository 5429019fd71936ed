"""Where the time comes from: the only two clocks a service reads.

Owns nothing but the calls. Decisions never import this module: they take `now` as an argument, and app.py hands
`utcnow` in. The trap: wall time may jump, so durations and deadlines are measured with `monotonic`.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeAlias

__all__ = ["Monotonic", "Now", "monotonic", "utcnow"]

Now: TypeAlias = Callable[[], datetime]
"""What a component asks for when it needs the time of day; always aware, always UTC."""

Monotonic: TypeAlias = Callable[[], float]
"""What a component asks for when it measures a duration, in seconds."""


# Not functions of our own around these: a service reads its clocks several times per request.
utcnow: Final[Now] = partial(datetime.now, UTC)
"""Return the time of day, aware and in UTC."""

monotonic: Final[Monotonic] = time.monotonic
"""Return seconds of a clock that never goes back; only differences mean something."""
