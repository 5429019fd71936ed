"""What one download has to say of itself, to whom it may concern: a log line, a status, a page. Pure."""

from dataclasses import dataclass

from matrixinfer.downloader.core.room import human_bytes

__all__ = ["Recorded", "Report", "percent", "sentence"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the ModelVersion says it consists of; empty where nobody found out yet."""

    revision: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What one download has to say: still running, ended well (`digest`) or not (`cause` and `message`)."""

    pod: str = ""
    revision: str = ""
    total_bytes: int = 0
    file_count: int = 0
    done_bytes: int = 0
    peer_bytes: int = 0
    """Bytes that other pods gave."""
    bytes_per_second: int = 0
    digest: str = ""
    cause: str = ""
    message: str = ""

    @property
    def resolved(self) -> bool:
        """True once the source was listed."""
        return self.file_count > 0


def sentence(report: Report) -> str:
    """Return how far it is, for people: `38.5 MiB of 94.1 MiB (40 %), 12.0 MiB/s, 4 s left`."""
    done, total, rate = report.done_bytes, report.total_bytes, report.bytes_per_second
    text = f"{human_bytes(done)} of {human_bytes(total)} ({percent(report)} %)"
    return f"{text}, {human_bytes(rate)}/s, {(total - done) // rate} s left" if rate else text


def percent(report: Report) -> int:
    """Whole percent of the bytes; 100 only when every byte is there."""
    return report.done_bytes * 100 // report.total_bytes if report.total_bytes else 100
