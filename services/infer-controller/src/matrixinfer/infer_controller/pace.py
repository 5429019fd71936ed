"""Holding back writes of status that can wait, so that a hundred pods becoming ready cost one write and not a hundred.

Owns when, not what: `status.is_urgent` says which changes may wait. What is held is remembered here only, because
losing it costs nothing but one early write. The trap: a status that changes without end must still be written, so the
wait is counted from the first change that was held and not from the last.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from matrixinfer.infer_controller.status import is_urgent
from matrixinfer.kube.plan import Plan, WriteStatus
from matrixinfer.kube.resource import Key

__all__ = ["StatusPace"]


class StatusPace:
    """Remembers since when the status of each key differs from what is wanted."""

    def __init__(self, hold: timedelta) -> None:
        self._hold = hold
        self._since: dict[Key, datetime] = {}

    def paced(self, key: Key, plan: Plan, now: datetime) -> Plan:
        """Return the plan, its status write put off when that may wait a little longer."""
        differing = [status for status in plan.status if status.desired != status.current]
        if not differing or plan.error is not None or any(is_urgent(s.current, s.desired) for s in differing):
            self._since.pop(key, None)
            return plan
        since = self._since.setdefault(key, now)
        # Of a new object whose pods merely start there is even less to tell.
        hold = self._hold if all(status.current for status in differing) else 2 * self._hold
        left = since + hold - now
        if left <= timedelta():
            del self._since[key]
            return plan
        again = left if plan.again_after is None else min(left, plan.again_after)
        return replace(plan, status=tuple(_unwritten(status) for status in plan.status), again_after=again)

    def forget(self, key: Key) -> None:
        """Drop what is remembered of a key that is gone."""
        self._since.pop(key, None)


def _unwritten(status: WriteStatus) -> WriteStatus:
    return replace(status, current=status.desired)
