"""Scraping of engine pods over HTTP: one seam, bounded in number, time and size.

Owns: the client session. Every scrape has a deadline of its own, all together never exceed `concurrency`, and a body
over the bound is refused. Several places to look at are tried in order when nobody listens at the first.
Refuses: retries. The next round is the retry. Trap: pods are not trusted; redirects are not followed, and whatever
goes wrong is a `ScrapeFailed` of one pod.
"""

import asyncio
import ssl
from collections.abc import Sequence
from enum import StrEnum
from typing import Self

import aiohttp
from yarl import URL

from matrixinfer.autoscaler.endpoints import Endpoint
from matrixinfer.engines.exposition import ExpositionTooLarge, MetricReader, Reading

__all__ = ["Failure", "ScrapeFailed", "Scraper"]


class Failure(StrEnum):
    """Why a scrape gave nothing: a closed set, for metrics."""

    REFUSED = "refused"
    DEADLINE = "deadline"
    STATUS = "status"
    SIZE = "size"
    BROKEN = "broken"


class ScrapeFailed(Exception):
    """One pod's metrics could not be read."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class Scraper:
    """Use as an async context manager, in one event loop."""

    def __init__(self, *, concurrency: int = 64, deadline_seconds: float = 3.0) -> None:
        self._deadline_seconds = deadline_seconds
        self._slots = asyncio.Semaphore(concurrency)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=2, keepalive_timeout=60)
        # The environment's proxies are for the world outside, not for pods.
        self._session = aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def scrape(self, endpoints: Sequence[Endpoint], reader: MetricReader) -> Reading:
        """Read one pod at the first of `endpoints` where somebody listens. Raises `ScrapeFailed`."""
        async with self._slots:
            refused = ScrapeFailed(Failure.REFUSED, "the pod has no address")
            for endpoint in endpoints:
                try:
                    return reader.read(await self._body(endpoint, reader.limit_bytes))
                except ScrapeFailed as exc:
                    if exc.failure is not Failure.REFUSED:
                        raise
                    refused = exc
                except ExpositionTooLarge as exc:
                    raise ScrapeFailed(Failure.SIZE, f"{endpoint.url}: {exc}") from exc
            raise refused

    async def _body(self, endpoint: Endpoint, limit_bytes: int) -> bytes:
        if self._session is None:
            raise RuntimeError("the scraper was not entered")
        try:
            async with (
                asyncio.timeout(self._deadline_seconds),
                self._session.get(URL(endpoint.url, encoded=True), allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    raise ScrapeFailed(Failure.STATUS, f"{endpoint.url} answered {answer.status}")
                return await _bounded(answer, limit_bytes)
        except TimeoutError as exc:
            raise ScrapeFailed(Failure.DEADLINE, f"{endpoint.url} took over {self._deadline_seconds:g} s") from exc
        except aiohttp.ClientConnectorError as exc:
            raise ScrapeFailed(Failure.REFUSED, f"nobody listens at {endpoint.url}") from exc
        except (aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as exc:
            raise ScrapeFailed(Failure.BROKEN, f"{endpoint.url}: {exc}") from exc


async def _bounded(answer: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """The body, or `ScrapeFailed` as soon as it exceeds the bound."""
    parts: list[bytes] = []
    size = 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > limit_bytes:
            raise ScrapeFailed(Failure.SIZE, f"{answer.url} sent over {limit_bytes} bytes")
        parts.append(part)
    return b"".join(parts)
