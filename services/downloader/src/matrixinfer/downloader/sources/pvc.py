"""`pvc://claim/path`: a volume claim that the pod mounts read-only under one folder for all claims.

Owns only where a claim is found. The folder is a setting, agreed with whoever renders the pod: claim `weights`
is mounted at `<claims_dir>/weights`.
"""

from pathlib import Path

from matrixinfer.downloader.core.uri import Claim
from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.sources.folder import FolderSource

__all__ = ["claim_source"]


def claim_source(location: Claim, claims_dir: Path) -> FolderSource:
    """Return the source for a mounted claim; raises DownloadError(NotFound) when it is not mounted."""
    mount = claims_dir / location.claim
    if not mount.is_dir():
        raise DownloadError(
            Cause.NOT_FOUND, f"the claim {location.claim!r} is not mounted at {mount}; the pod must mount it there"
        )
    return FolderSource(mount / location.path, boundary=mount)
