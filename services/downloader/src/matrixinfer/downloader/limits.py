"""How much at once, how long, how often: what one download may take, in one value that also travels to its workers."""

from dataclasses import dataclass, field

from matrixinfer.downloader.cores import usable_cores
from matrixinfer.downloader.patience import Patience
from matrixinfer.downloader.progress import Progress

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much at once, how long, how often."""

    part_bytes: int = 16 << 20
    buffer_bytes: int = 1 << 20
    connections: int = 32
    read_seconds: float = 30.0
    slowest_bytes_per_second: int = 1 << 12
    tries: int = 6
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 20.0
    listing_seconds: float = 300.0
    lock_wait_seconds: float = 3600.0
    lock_patience_seconds: float = 12.0
    reserve_bytes: int = 64 << 20
    high_water_percent: int = 90
    cores: float = field(default_factory=usable_cores)
    """What may be kept busy."""

    def patience(self, progress: Progress) -> Patience:
        """How often to try again."""
        return Patience(self.tries, self.first_wait_seconds, self.longest_wait_seconds, progress)
