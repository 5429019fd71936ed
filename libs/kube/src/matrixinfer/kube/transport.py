"""HTTP to one API server: credentials, TLS, connections, deadlines, status checks.

The only file that imports kubernetes_asyncio, and only its configuration and credentials: its REST client has no
default timeout and, in the released version, no status check for raw responses. Refuses to retry (the work queue does
that); the one exception is a 401, after which the credentials are read again and the request is sent once more,
because a rotated token is no failure.

Traps: a pod's token file is replaced about once an hour and a kubeconfig's `tokenFile` just the same; an unfinished
line of a watch may be megabytes long; short requests and watches share nothing, so that watches cannot use up the pool.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from kubernetes_asyncio import config as kubernetes_config
from kubernetes_asyncio.client import Configuration

from matrixinfer.kube.errors import ConfigError, DeadlineExceeded, Unauthorized, Unreachable, error_from_response

__all__ = ["Credentials", "KubernetesCredentials", "Transport", "assemble_lines"]

_REFRESH_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 5.0
_READ_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class _Files:
    ca: str | None
    certificate: str | None
    key: str | None


class Credentials:
    """Who we are and where the server is, without any renewal; `Transport` asks before each request."""

    def __init__(self, host: str, *, authorization: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.host = host.rstrip("/")
        self.tls = tls
        self.server_name: str | None = None
        self.proxy: str | None = None
        self._authorization = authorization

    async def authorization(self) -> str:
        """Return the Authorization header's value; empty for a client certificate."""
        return self._authorization

    async def renew(self) -> None:
        """Read everything again now, because the server did not accept what we sent."""


class KubernetesCredentials(Credentials):
    """Credentials of a kubeconfig file, or of the pod we run in; files are read again once a minute."""

    def __init__(self, kubeconfig: Path | None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__("")
        self._kubeconfig = kubeconfig
        self._monotonic = monotonic
        self._configuration = Configuration()
        self._loader: Any = None
        self._kubeconfig_version: tuple[int, int] | None = None
        self._files: _Files = _Files(None, None, None)
        self._files_digest = b""
        self._fresh_until = 0.0
        self._lock = asyncio.Lock()

    async def load(self) -> None:
        """Read the configuration; raises ConfigError with what is missing."""
        try:
            await self._read()
        except (kubernetes_config.ConfigException, OSError, ValueError, AssertionError, KeyError, TypeError) as exc:
            source = str(self._kubeconfig) if self._kubeconfig else "the pod's ServiceAccount"
            raise ConfigError(f"cannot read credentials from {source}: {exc}") from exc

    async def authorization(self) -> str:
        """Return the present token, read again when it is older than a minute."""
        if self._monotonic() >= self._fresh_until:
            async with self._lock:
                if self._monotonic() >= self._fresh_until:
                    await self._refresh()
        return self._authorization

    async def renew(self) -> None:
        """Read token and certificates again now."""
        async with self._lock:
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            await self.load()
        except ConfigError:
            # A file that is being replaced may be missing for a moment: what we have may still be good.
            self._fresh_until = self._monotonic() + 1.0

    async def _read(self) -> None:
        async with asyncio.timeout(30):
            await (self._read_kubeconfig(self._kubeconfig) if self._kubeconfig else self._read_in_cluster())
        found = self._configuration
        if not found.host:
            raise ConfigError("the configuration names no server")
        self.host = str(found.host).rstrip("/")
        self.server_name = found.tls_server_name
        self.proxy = found.proxy
        # The library keeps the newline that a token file may end with, which no header may carry.
        self._authorization = str(found.api_key.get("BearerToken") or "").strip()
        self._load_tls(_Files(found.ssl_ca_cert, found.cert_file, found.key_file), verify=bool(found.verify_ssl))
        self._fresh_until = self._monotonic() + _REFRESH_SECONDS

    async def _read_in_cluster(self) -> None:
        configuration = Configuration()
        # The library ships types, but this one function has none.
        kubernetes_config.load_incluster_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration, try_refresh_token=False
        )
        self._configuration = configuration

    async def _read_kubeconfig(self, path: Path) -> None:
        # A local stat, once a minute; a thread would cost more than it saves.
        stat = path.stat()  # noqa: ASYNC240
        version = (stat.st_mtime_ns, stat.st_ino)
        if self._loader is None or version != self._kubeconfig_version:
            self._configuration = Configuration()
            self._loader = await kubernetes_config.load_kube_config(
                config_file=str(path), client_configuration=self._configuration, persist_config=False
            )
            self._kubeconfig_version = version
            return
        # The same loader again: it knows when an exec plugin's answer expires, and reads a tokenFile anew.
        await self._loader.load_and_set(self._configuration)

    def _load_tls(self, files: _Files, *, verify: bool) -> None:
        if not self.host.startswith("https"):
            return
        names = [name for name in (files.ca, files.certificate, files.key) if name]
        digest = sha256(b"\0".join(Path(name).read_bytes() for name in names)).digest()
        if self.tls is not None and digest == self._files_digest:
            return
        if self.tls is None:
            self.tls = ssl.create_default_context(cafile=files.ca)
            if not verify:
                self.tls.check_hostname = False
                self.tls.verify_mode = ssl.CERT_NONE
        elif files.ca:
            self.tls.load_verify_locations(cafile=files.ca)
        if files.certificate:
            # Into the same context: connections made from now on use the new certificate.
            self.tls.load_cert_chain(files.certificate, files.key)
        self._files, self._files_digest = files, digest


class Transport:
    """Sends requests and returns bytes, or raises one of `errors`."""

    def __init__(self, credentials: Credentials, *, user_agent: str, pool_size: int = 64) -> None:
        self.credentials = credentials
        self._headers = {"User-Agent": user_agent, "Accept": "application/json"}
        self._short = self._session(aiohttp.TCPConnector(limit=pool_size, ssl=credentials.tls or True, **_KEEPALIVE))
        self._long = self._session(aiohttp.TCPConnector(limit=0, ssl=credentials.tls or True, **_KEEPALIVE))

    @classmethod
    async def open(cls, kubeconfig: Path | None, *, user_agent: str, pool_size: int = 64) -> Self:
        """Return a transport for a kubeconfig, or for the pod's own ServiceAccount when it is None."""
        credentials = KubernetesCredentials(kubeconfig)
        await credentials.load()
        return cls(credentials, user_agent=user_agent, pool_size=pool_size)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        async with asyncio.timeout(5):
            await self._short.close()
            await self._long.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        deadline_seconds: float,
    ) -> bytes:
        """Return the body of a successful response; the deadline spans connecting, waiting and reading."""
        try:
            async with asyncio.timeout(deadline_seconds):
                try:
                    return await self._once(method, path, params, body, content_type)
                except Unauthorized:
                    await self.credentials.renew()
                    return await self._once(method, path, params, body, content_type)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"{method} {path} had no answer within {deadline_seconds:g} s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise Unreachable(f"{method} {path}: {_sentence(exc)}") from exc

    @asynccontextmanager
    async def stream(
        self, path: str, *, params: Mapping[str, str], deadline_seconds: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a response whose body goes on; yields its lines. The deadline is for the head of the response only."""
        response = await self._open_stream(path, params, deadline_seconds)
        try:
            yield assemble_lines(_chunks(response, path))
        finally:
            response.close()

    async def _open_stream(
        self, path: str, params: Mapping[str, str], deadline_seconds: float
    ) -> aiohttp.ClientResponse:
        try:
            async with asyncio.timeout(deadline_seconds):
                try:
                    return await self._checked(self._long, "GET", path, params)
                except Unauthorized:
                    await self.credentials.renew()
                    return await self._checked(self._long, "GET", path, params)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"GET {path} had no answer within {deadline_seconds:g} s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise Unreachable(f"GET {path}: {_sentence(exc)}") from exc

    async def _once(
        self, method: str, path: str, params: Mapping[str, str] | None, body: bytes | None, content_type: str
    ) -> bytes:
        response = await self._checked(self._short, method, path, params, body, content_type)
        async with response:
            return await response.read()

    async def _checked(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "",
    ) -> aiohttp.ClientResponse:
        headers = {}
        if authorization := await self.credentials.authorization():
            headers["Authorization"] = authorization
        if body is not None:
            headers["Content-Type"] = content_type
        response = await session.request(
            method,
            self.credentials.host + path,
            params=params,
            data=body,
            headers=headers,
            server_hostname=self.credentials.server_name,
            proxy=self.credentials.proxy,
            allow_redirects=False,
        )
        if 200 <= response.status < 300:
            return response
        async with response:
            raise error_from_response(
                response.status, await response.read(), retry_after=response.headers.get("Retry-After")
            )

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            # No total here: each call brings its own deadline, and a watch has none.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            read_bufsize=_READ_BYTES,
            cookie_jar=aiohttp.DummyCookieJar(),
        )


_KEEPALIVE: Final[Mapping[str, Any]] = {"keepalive_timeout": 60.0, "ttl_dns_cache": 60}


async def _chunks(response: aiohttp.ClientResponse, path: str) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, OSError) as exc:
        raise Unreachable(f"GET {path} broke off: {_sentence(exc)}") from exc


async def assemble_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield complete lines of any length; what follows the last newline is dropped, because it is a torn object.

    Each byte is looked at once, however many chunks a line comes in.
    """
    parts: list[bytes] = []
    async for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            line = b"".join((*parts, piece)) if parts else piece
            parts.clear()
            if line:
                yield line
        if rest:
            parts.append(rest)


def _sentence(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__
