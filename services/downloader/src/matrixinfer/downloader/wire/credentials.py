"""Who signs the requests to an object store.

Keys that were given are used as they are. Otherwise the places that the AWS clients know are asked (web identity, a
container's or an instance's role, files), through their library, which renews what expires; it is loaded only then.
Nothing found, or nothing wanted, means unsigned requests. The trap: the library's errors may quote what was
configured, so only their kind is shown.
"""

import threading
from typing import Protocol

from matrixinfer.downloader.errors import Cause, DownloadError
from matrixinfer.downloader.wire.sigv4 import Keys

__all__ = ["Anonymous", "Credentials", "Found", "Given", "credentials"]


class Credentials(Protocol):
    """Where keys come from."""

    def keys(self) -> Keys | None:
        """Return the keys that are valid now; None means that requests are not signed."""
        ...


class Anonymous:
    """No signature."""

    def keys(self) -> None:
        """Nothing."""


class Given:
    """Keys that were given, and never change."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def keys(self) -> Keys:
        """The keys."""
        return self._keys


class Found:
    """Whatever the usual places of the AWS clients hold."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked = False
        self._source: object = None

    def keys(self) -> Keys | None:
        """Return the keys that are valid now; asks for new ones when these expire."""
        # Loaded here because it takes long, and only a store whose keys are not given needs it.
        from botocore.exceptions import BotoCoreError
        from botocore.session import get_session

        try:
            with self._lock:
                if not self._looked:
                    self._source = get_session().get_credentials()
                    self._looked = True
                if self._source is None:
                    return None
                frozen = self._source.get_frozen_credentials()  # type: ignore[attr-defined]  # made at run time
        except BotoCoreError as exc:
            raise DownloadError(
                Cause.ACCESS_DENIED, f"the credentials of the store cannot be had ({type(exc).__name__})"
            ) from exc
        return Keys(frozen.access_key, frozen.secret_key, frozen.token or "")


def credentials(access_key: str, secret_key: str, token: str, *, anonymous: bool) -> Credentials:
    """Return the one that fits what was given."""
    if anonymous:
        return Anonymous()
    if access_key and secret_key:
        return Given(Keys(access_key, secret_key, token))
    if access_key or secret_key:
        raise DownloadError(
            Cause.ACCESS_DENIED, "only one of ACCESS_KEY and SECRET_KEY is set; set both from a Secret, or none"
        )
    return Found()
