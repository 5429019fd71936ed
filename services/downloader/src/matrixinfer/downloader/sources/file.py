"""`file:///folder`: a folder of this machine, for development clusters whose nodes are this machine."""

from pathlib import Path

from matrixinfer.downloader.core.uri import Folder
from matrixinfer.downloader.sources.folder import FolderSource

__all__ = ["local_source"]


def local_source(location: Folder) -> FolderSource:
    """Return the source for a folder or a single file; links may not lead out of it."""
    path = Path(location.path)
    return FolderSource(path, boundary=path.parent if path.is_file() else path)
