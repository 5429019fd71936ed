"""Where a pod publishes its metrics, as a value."""

from dataclasses import dataclass

__all__ = ["Endpoint"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address; several pods never share one."""

    host: str
    port: int
    path: str = "/metrics"

    @property
    def url(self) -> str:
        """The address as a URL; IPv6 is bracketed, the path kept as written."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.path}"
