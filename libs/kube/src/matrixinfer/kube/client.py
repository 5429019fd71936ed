"""Verbs on resources, as decoded JSON, each with a deadline.

Owns URLs, content types and query parameters of the Kubernetes API. Refuses to retry, to cache and to type: manifests
are plain JSON. Server-side apply always forces, because a controller owns what it applies.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson

from matrixinfer.kube import metrics
from matrixinfer.kube.errors import ApiError, NotFound
from matrixinfer.kube.resource import Key, Manifest, Resource, key_of
from matrixinfer.kube.transport import Transport
from matrixinfer.kube.watch import Page, WatchEvent, parse_event, parse_page

__all__ = ["Client", "Listing"]

DEADLINE_SECONDS: Final = 10.0
_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects of a list, and the resourceVersion at which they were all true."""

    items: Sequence[dict[str, Any]]
    resource_version: str


class Client:
    """One API server. Safe to share between tasks; close it, or use it as an async context manager."""

    def __init__(self, transport: Transport, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._transport = transport
        self._monotonic = monotonic

    @classmethod
    async def connect(
        cls, kubeconfig: Path | None = None, *, user_agent: str = "matrixinfer", pool_size: int = 64
    ) -> Self:
        """Return a client for a kubeconfig, or for the pod's own ServiceAccount when it is None.

        Sends nothing yet; raises ConfigError when the configuration cannot be read.
        """
        return cls(await Transport.open(kubeconfig, user_agent=user_agent, pool_size=pool_size))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    @property
    def host(self) -> str:
        """Base URL of the API server, for messages."""
        return self._transport.credentials.host

    async def get(self, resource: Resource, key: Key, *, deadline_seconds: float = DEADLINE_SECONDS) -> dict[str, Any]:
        """Return one object; raises NotFound."""
        return await self._json("get", resource, "GET", resource.path(key), deadline_seconds)

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        page_size: int = 500,
        deadline_seconds: float = 30.0,
    ) -> Listing:
        """Return all objects, page by page; the deadline is per page."""
        items: list[dict[str, Any]] = []
        version = ""
        async for page in self.pages(
            resource,
            namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            page_size=page_size,
            deadline_seconds=deadline_seconds,
        ):
            items.extend(orjson.loads(raw) for raw in page.items)
            version = page.resource_version
        return Listing(items, version)

    async def pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        page_size: int = 500,
        deadline_seconds: float = 30.0,
    ) -> AsyncIterator[Page]:
        """Yield the pages of a list, raw bytes per object. Raises Gone when it took so long that its token expired."""
        params = {"limit": str(page_size), **_selectors(label_selector, field_selector)}
        while True:
            raw = await self._send(
                "list", resource, "GET", resource.collection_path(namespace), deadline_seconds, params=params
            )
            page = parse_page(raw)
            yield page
            if not page.next_token:
                return
            params["continue"] = page.next_token

    @asynccontextmanager
    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = 300,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        """Open a watch with bookmarks; yields its events. The server ends it after `timeout_seconds`.

        The iterator raises Gone when the resourceVersion is too old, Unreachable when the connection breaks. It has no
        inactivity timeout of its own; the reflector has.
        """
        params = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
            **_selectors(label_selector, field_selector),
        }
        path = resource.collection_path(namespace)
        async with AsyncExitStack() as stack:
            with _Counted("watch", resource):
                lines = await stack.enter_async_context(
                    self._transport.stream(path, params=params, deadline_seconds=deadline_seconds)
                )
            yield _events(lines)

    async def create(
        self,
        resource: Resource,
        manifest: Manifest,
        *,
        field_manager: str = "",
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> dict[str, Any]:
        """Return the object as stored; raises AlreadyExists."""
        return await self._json(
            "create",
            resource,
            "POST",
            resource.collection_path(key_of(manifest).namespace),
            deadline_seconds,
            params=_manager(field_manager),
            body=_complete(resource, manifest),
        )

    async def apply(
        self,
        resource: Resource,
        manifest: Manifest,
        *,
        field_manager: str,
        subresource: str = "",
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> dict[str, Any]:
        """Server-side apply, taking over conflicting fields; creates the object when it is absent.

        A `metadata.uid` in the manifest is a precondition. Fields that this manager applied before and leaves out now
        are removed.
        """
        return await self._json(
            "apply",
            resource,
            "PATCH",
            resource.path(key_of(manifest), subresource),
            deadline_seconds,
            params={"fieldManager": field_manager, "force": "true"},
            body=_complete(resource, manifest),
            content_type=_APPLY,
        )

    async def merge_patch(
        self,
        resource: Resource,
        key: Key,
        patch: Manifest,
        *,
        subresource: str = "",
        field_manager: str = "",
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> dict[str, Any]:
        """JSON merge patch; `metadata.uid` and `metadata.resourceVersion` in the patch are preconditions."""
        return await self._json(
            "patch",
            resource,
            "PATCH",
            resource.path(key, subresource),
            deadline_seconds,
            params=_manager(field_manager),
            body=patch,
            content_type=_MERGE,
        )

    async def replace(
        self,
        resource: Resource,
        manifest: Manifest,
        *,
        subresource: str = "",
        field_manager: str = "",
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> dict[str, Any]:
        """PUT a whole object; give `metadata.resourceVersion`, or the last writer wins."""
        return await self._json(
            "update",
            resource,
            "PUT",
            resource.path(key_of(manifest), subresource),
            deadline_seconds,
            params=_manager(field_manager),
            body=_complete(resource, manifest),
        )

    async def delete(
        self,
        resource: Resource,
        key: Key,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
        propagation: str = "Background",
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> dict[str, Any]:
        """Delete; raises NotFound, and Conflict when `uid` is not the object's. Returns the object while it terminates,
        otherwise the server's Status."""
        options: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        return await self._json("delete", resource, "DELETE", resource.path(key), deadline_seconds, body=options)

    async def scale(
        self,
        resource: Resource,
        key: Key,
        replicas: int,
        *,
        field_manager: str = "",
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> dict[str, Any]:
        """Set `spec.replicas` through the scale subresource; returns the Scale."""
        return await self._json(
            "scale",
            resource,
            "PATCH",
            resource.path(key, "scale"),
            deadline_seconds,
            params=_manager(field_manager),
            body={"spec": {"replicas": replicas}},
            content_type=_MERGE,
        )

    async def serves(self, resource: Resource, *, deadline_seconds: float = DEADLINE_SECONDS) -> bool:
        """True when the server has this resource, e.g. because its CRD is installed."""
        try:
            found = await self._json("discover", resource, "GET", resource.root, deadline_seconds)
        except NotFound:
            return False
        return any(entry.get("name") == resource.plural for entry in found.get("resources") or ())

    async def _json(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        deadline_seconds: float,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        raw = await self._send(
            verb,
            resource,
            method,
            path,
            deadline_seconds,
            params=params,
            body=None if body is None else orjson.dumps(body),
            content_type=content_type,
        )
        try:
            found = orjson.loads(raw)
        except orjson.JSONDecodeError as exc:
            raise ApiError(200, "Undecodable", f"{method} {path} was answered with something other than JSON") from exc
        if not isinstance(found, dict):
            raise ApiError(200, "Undecodable", f"{method} {path} was answered with something other than an object")
        return found

    async def _send(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        deadline_seconds: float,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        started = self._monotonic()
        with _Counted(verb, resource):
            raw = await self._transport.request(
                method, path, params=params, body=body, content_type=content_type, deadline_seconds=deadline_seconds
            )
        metrics.API_SECONDS.labels(verb).observe(self._monotonic() - started)
        return raw


class _Counted:
    """Counts one request by its end: 200 for success, else the status, or the error's name without one."""

    __slots__ = ("_resource", "_verb")

    def __init__(self, verb: str, resource: Resource) -> None:
        self._verb = verb
        self._resource = resource.plural

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            code = "200"
        elif isinstance(error, ApiError):
            code = str(error.status or error.reason)
        else:
            code = "cancelled"
        metrics.API_REQUESTS.labels(self._verb, self._resource, code).inc()


async def _events(lines: AsyncIterator[bytes]) -> AsyncIterator[WatchEvent]:
    async for line in lines:
        yield parse_event(line)


def _complete(resource: Resource, manifest: Manifest) -> Mapping[str, Any]:
    """Return the manifest with apiVersion and kind, which the server wants even where the URL says it."""
    return {"apiVersion": resource.api_version, "kind": resource.kind, **manifest}


def _manager(field_manager: str) -> Mapping[str, str] | None:
    return {"fieldManager": field_manager} if field_manager else None


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    named = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {name: value for name, value in named.items() if value}
