"""How often, and how long between two tries."""

import threading
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.patience import Patience
from matrixinfer.downloader.progress import Progress


class Pauses(threading.Event):
    """Notes the pauses instead of making them."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return False


def patience(tries: int = 3, longest: float = 20.0) -> Patience:
    return Patience(tries, 0.5, longest, Progress())


def failing(times: int, retry_after: float | None = None) -> Callable[[], str]:
    left = iter(range(times))

    def work() -> str:
        if next(left, None) is not None:
            raise TransientError("busy", retry_after=retry_after)
        return "done"

    return work


def test_what_works_is_done_once() -> None:
    pauses = Pauses()
    assert patience().work(failing(0), pauses) == "done"
    assert pauses.seconds == []


def test_the_last_try_counts() -> None:
    pauses = Pauses()
    assert patience(tries=3).work(failing(2), pauses) == "done"
    assert len(pauses.seconds) == 2


def test_what_never_works_is_given_up_with_its_reason() -> None:
    with pytest.raises(DownloadError, match=r"busy \(given up after 3 tries\)") as raised:
        patience(tries=3).work(failing(9), Pauses())
    assert raised.value.cause is Cause.UNREACHABLE
    assert not isinstance(raised.value, TransientError)


def test_pauses_double_up_to_the_longest() -> None:
    pauses = Pauses()
    patience(tries=9, longest=4.0).work(failing(8), pauses)
    bounds = [0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    assert all(0 <= pause <= bound for pause, bound in zip(pauses.seconds, bounds, strict=True))


def test_what_the_source_asks_for_is_waited_within_the_longest() -> None:
    pauses = Pauses()
    patience(longest=20.0).work(failing(1, retry_after=7.0), pauses)
    patience(longest=5.0).work(failing(1, retry_after=7.0), pauses)
    assert pauses.seconds == [7.0, 5.0]


def test_a_source_that_goes_on_is_tried_for_as_long_as_it_takes() -> None:
    assert patience(tries=2).work(failing(5000), Pauses(), position=counting(stride=10), stride=10) == "done"


def test_a_source_that_drips_is_given_up() -> None:
    with pytest.raises(DownloadError, match="given up"):
        patience(tries=2).work(failing(5000), Pauses(), position=counting(stride=1), stride=1000)


def counting(stride: int) -> Callable[[], int]:
    positions: Iterator[int] = count(0, stride)
    return lambda: next(positions)
