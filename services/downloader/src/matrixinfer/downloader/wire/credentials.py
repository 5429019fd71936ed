"""Who signs the requests to an object store.

Keys that were given are used as they are. Otherwise the places that the AWS clients know are asked (web identity, a
container's or an instance's role, files), through their library, which renews what expires; it is loaded only then.
Nothing found, or nothing wanted, means unsigned requests. The traps: the library's errors may quote what was
configured, so only their kind is shown; it takes the region of its token service from AWS_DEFAULT_REGION alone; and a
store may end keys before their time, so keys that it calls expired are looked for anew.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.wire.sigv4 import Keys
from matrixinfer.service.logging import get_logger

__all__ = ["Anonymous", "Credentials", "Found", "Given", "Lent", "credentials"]

log = get_logger("credentials")

_LENT_SECONDS = 60.0
_PASSING = frozenset(("IDPCommunicationError", "InternalFailure", "RequestTimeout", "ServiceUnavailable", "Throttling"))


class Credentials(Protocol):
    """Where keys come from."""

    def keys(self) -> Keys | None:
        """Return the keys that are valid now; None means that requests are not signed.

        Raises DownloadError (AccessDenied when there can be none) or TransientError.
        """
        ...

    def renewed(self, refused: Keys) -> bool:
        """Look for other keys than those that the store refused; False when there are none."""
        ...


class Anonymous:
    """No signature."""

    def keys(self) -> None:
        """Nothing."""

    def renewed(self, _refused: Keys) -> bool:
        """Never."""
        return False


class Given:
    """Keys that were given, and never change."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def keys(self) -> Keys:
        """The keys."""
        return self._keys

    def renewed(self, _refused: Keys) -> bool:
        """Never."""
        return False


class Found:
    """Whatever the usual places of the AWS clients hold."""

    def __init__(self, region: str = "") -> None:
        self._region = region
        self._lock = threading.Lock()
        self._looked = False
        self._source: object = None

    def keys(self) -> Keys | None:
        """Return the keys that are valid now; asks for new ones when these expire."""
        with self._lock:
            return self._current()

    def renewed(self, refused: Keys) -> bool:
        """Look again, unless another thread has done so since."""
        with self._lock:
            if self._current() == refused:
                self._looked = False
            return self._current() != refused

    def _current(self) -> Keys | None:
        with _translated():
            if not self._looked:
                self._source = self._found()
                self._looked = True
            if self._source is None:
                return None
            frozen = self._source.get_frozen_credentials()  # type: ignore[attr-defined]  # made at run time
        return Keys(frozen.access_key, frozen.secret_key, frozen.token or "")

    def _found(self) -> object:
        # Loaded here because it takes long, and only a store whose keys are not given needs it.
        from botocore.session import get_session

        session = get_session()
        if self._region:
            session.set_config_variable("region", self._region)
        found = session.get_credentials()
        log.info("credentials_looked_for", found=getattr(found, "method", "none; requests are not signed"))
        return found


class Lent:
    """Keys that another process looks for: asked for now and then, and when the store refuses them."""

    def __init__(self, ask: Callable[[Keys | None], Keys | None], monotonic: Callable[[], float]) -> None:
        """`ask` gives the keys in force, and other ones than those that were refused."""
        self._ask = ask
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._keys: Keys | None = None
        self._asked_at = float("-inf")

    def keys(self) -> Keys | None:
        """Return the keys of less than a minute ago: who looks for them renews them minutes before they end."""
        with self._lock:
            if self._monotonic() - self._asked_at > _LENT_SECONDS:
                self._take(None)
            return self._keys

    def renewed(self, refused: Keys) -> bool:
        """Ask for others, unless another thread has done so since."""
        with self._lock:
            if self._keys == refused:
                self._take(refused)
            return self._keys != refused

    def _take(self, refused: Keys | None) -> None:
        self._keys = self._ask(refused)
        self._asked_at = self._monotonic()


@contextmanager
def _translated() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as exc:
        code = str(exc.response.get("Error", {}).get("Code", "without a code"))
        if code in _PASSING:
            raise TransientError(f"the token service cannot give credentials now ({code})") from exc
        raise _none(
            f"the token service refused the pod's identity ({code}); let the role of AWS_ROLE_ARN trust the pod's "
            "service account"
        ) from exc
    except (NoConnection, HTTPClientError) as exc:
        raise TransientError(f"who gives the credentials of the store does not answer ({type(exc).__name__})") from exc
    except OSError as exc:
        raise _none("a file of the store's credentials cannot be read; see AWS_WEB_IDENTITY_TOKEN_FILE") from exc
    except (BotoCoreError, ResponseParserError, RuntimeError) as exc:
        raise _none(
            f"the credentials of the store cannot be had ({type(exc).__name__}); set ACCESS_KEY and SECRET_KEY from a "
            "Secret, or give the pod a role"
        ) from exc


def credentials(access_key: str, secret_key: str, token: str, *, anonymous: bool, region: str = "") -> Credentials:
    """Return the one that fits what was given."""
    if anonymous:
        return Anonymous()
    if access_key and secret_key:
        return Given(Keys(access_key, secret_key, token))
    if access_key or secret_key:
        raise _none("only one of ACCESS_KEY and SECRET_KEY is set; set both from a Secret, or none")
    return Found(region)


def _none(message: str) -> DownloadError:
    return DownloadError(Cause.ACCESS_DENIED, message)
