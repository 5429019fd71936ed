"""The links by which versions of a namespace find their models in a cache. Blocking.

    <cache>/versions/<namespace>/<version>/{model,adapter-0,…}

The model-controller names them so, in `render/download.py`. A version that exists no more has pods no more, or none
that will start again, so its links may go. The trap: only links are removed, and only folders that are empty then.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VersionLinks"]


@dataclass(frozen=True, slots=True)
class VersionLinks:
    """Those of one namespace; none without a namespace."""

    cache: Path
    namespace: str

    @property
    def _folder(self) -> Path:
        return self.cache / "versions" / self.namespace

    def names(self) -> Sequence[str]:
        """The versions that have links."""
        if not self.namespace:
            return ()
        with suppress(OSError):
            return sorted(entry.name for entry in self._folder.iterdir() if entry.is_dir() and not entry.is_symlink())
        return ()

    def remove(self, name: str) -> None:
        """Remove the links of a version."""
        # What another pod removes at the same time is removed.
        with suppress(OSError):
            for entry in (self._folder / name).iterdir():
                if entry.is_symlink():
                    entry.unlink(missing_ok=True)
            (self._folder / name).rmdir()
