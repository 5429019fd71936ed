"""A `MemoryApi` behind HTTP on loopback: paths, content types, status codes and watch streams of the real server.

Owns the wire form only; every rule is in `memory`. Runs in the event loop of the test, so the test may also use the
`MemoryApi` directly, between two awaits. Serves no TLS and asks for no credentials, unless a token is given.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson
import yaml
from aiohttp import web

from matrixinfer.kube.resource import PODS, SERVICES, Key, Resource
from matrixinfer.testkit.kinds import KindSpec
from matrixinfer.testkit.memory import ConnectionCut, MemoryApi, StatusError
from matrixinfer.testkit.records import Change, Object
from matrixinfer.testkit.status_errors import (
    Cause,
    bad_request,
    invalid,
    method_not_allowed,
    unknown_resource,
    unsupported_media_type,
)
from matrixinfer.testkit.structural import pruned

__all__ = ["ApiServer", "Request"]

_MERGE: Final = "application/merge-patch+json"
_JSON_PATCH: Final = "application/json-patch+json"
_APPLY: Final = "application/apply-patch+yaml"
_RETURNS_DELETED: Final = (PODS, SERVICES)
_PATCH_OPTIONS: Final = Resource("meta.k8s.io", "v1", "patchoptions", "PatchOptions")


@dataclass(frozen=True, slots=True)
class Request:
    """One request that came in: enough for a test to count lists and watches."""

    method: str
    path: str
    query: Mapping[str, str]

    @property
    def is_watch(self) -> bool:
        """True for the start of a watch."""
        return self.method == "GET" and self.query.get("watch") in ("1", "true")


@dataclass(frozen=True, slots=True)
class _Target:
    """What a path names; `key` is None for a collection, `namespace` None for all namespaces."""

    kind: KindSpec
    namespace: str | None
    key: Key | None
    subresource: str = ""

    @property
    def resource(self) -> Resource:
        return self.kind.resource


def _manager(request: web.BaseRequest) -> str:
    return request.query.get("fieldManager") or request.headers.get("User-Agent", "unknown").split("/")[0]


def _flag(request: web.BaseRequest, name: str) -> bool:
    return request.query.get(name) in ("1", "true")


def _number(request: web.BaseRequest, name: str) -> int | None:
    text = request.query.get(name, "")
    if not text:
        return None
    if not text.isdigit():
        raise bad_request(f"{name}: Invalid value: {text!r}")
    return int(text)


def _json(body: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(body), status=code, content_type="application/json", headers=dict(headers or {})
    )


def _refused(error: StatusError) -> web.Response:
    headers = {} if error.retry_after_seconds is None else {"Retry-After": str(error.retry_after_seconds)}
    return _json(error.status, error.code, headers)


def _decoded(raw: bytes) -> Object:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise bad_request(f"the object provided is unrecognized: {exc}") from exc
    if not isinstance(body, dict):
        raise bad_request("the object provided is unrecognized: not an object")
    return body


class _Stream:
    """One open watch: what to send next and what wakes it."""

    def __init__(self, server: "ApiServer", target: _Target, request: web.BaseRequest) -> None:
        self.api = server.api
        self.target = target
        self.labels = request.query.get("labelSelector", "")
        self.fields = request.query.get("fieldSelector", "")
        self.namespace = target.namespace
        self.wants_bookmarks = _flag(request, "allowWatchBookmarks")
        self.wants_initial_end = _flag(request, "sendInitialEvents")
        self.wake = asyncio.Event()
        self.bookmark_due = False
        self.version = self.api.resource_version
        self.epoch = self.api.faults.epoch(target.resource)

    def line(self, kind: str, body: Mapping[str, Any]) -> bytes:
        return orjson.dumps({"type": kind, "object": body}) + b"\n"

    def initial(self) -> list[bytes]:
        """Everything there is, as additions."""
        page = self.api.page(
            self.target.resource, self.namespace, label_selector=self.labels, field_selector=self.fields
        )
        self.version = page.resource_version
        lines = [self.line("ADDED", record.wire()) for record in page.records]
        if self.wants_initial_end:
            lines.append(self.bookmark({"annotations": {"k8s.io/initial-events-end": "true"}}))
        return lines

    def bookmark(self, more: Mapping[str, Any] | None = None) -> bytes:
        resource = self.target.resource
        meta = {"resourceVersion": str(self.version), "creationTimestamp": None, **(more or {})}
        return self.line("BOOKMARK", {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": meta})

    def pending(self) -> list[bytes]:
        """What to send now; advances past it."""
        resource, faults = self.target.resource, self.api.faults
        lines: list[bytes] = []
        newest = self.api.resource_version
        held = False
        for change in self.api.changes(
            resource, self.version, self.namespace, label_selector=self.labels, field_selector=self.fields
        ):
            if faults.is_held(resource, change.resource_version):
                held = True
                break
            lines += [self._event(change)] * faults.copies(resource)
            self.version = change.resource_version
        if not held and not faults.is_held(resource, newest):
            self.version = newest
        if self.bookmark_due and self.wants_bookmarks and not held:
            lines.append(self.bookmark())
        self.bookmark_due = False
        return lines

    def _event(self, change: Change) -> bytes:
        return self.line(change.type, self._stamped(change))

    @staticmethod
    def _stamped(change: Change) -> Object:
        """The object as of the change; one that stopped matching is shown as it last matched, at the new version."""
        record = change.after
        if change.type == "DELETED" and change.before is not None:
            record = change.before
        wire = record.wire()
        return {**wire, "metadata": {**wire["metadata"], "resourceVersion": str(change.resource_version)}}

    @property
    def is_cut(self) -> bool:
        return self.epoch != self.api.faults.epoch(self.target.resource)


class ApiServer:
    """Serves a `MemoryApi`; an async context manager."""

    def __init__(self, api: MemoryApi | None = None, *, token: str = "", bookmark_seconds: float = 60.0) -> None:
        self.api = api or MemoryApi()
        self.requests: list[Request] = []
        self._token = token
        self._bookmark_seconds = bookmark_seconds
        self._port = 0
        self._runner: web.ServerRunner | None = None
        self._streams: set[_Stream] = set()
        self._running = asyncio.Event()
        self._running.set()

    # ------------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen on loopback; on the same port again after a `stop`."""
        self._runner = web.ServerRunner(web.Server(self._handle, handler_cancellation=True), shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close every connection and stop listening; the state stays."""
        if self._runner is not None:
            for stream in tuple(self._streams):
                stream.epoch = -1
                stream.wake.set()
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        """Base URL; known once started."""
        return f"http://127.0.0.1:{self._port}"

    def write_kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig for this server and return its path."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "memory",
            "clusters": [{"name": "memory", "cluster": {"server": self.url}}],
            "users": [{"name": "memory", "user": {"token": self._token} if self._token else {}}],
            "contexts": [{"name": "memory", "context": {"cluster": "memory", "user": "memory"}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def bookmark(self) -> None:
        """Send a bookmark on every open watch that asked for them."""
        for stream in self._streams:
            stream.bookmark_due = True
            stream.wake.set()

    def freeze(self) -> None:
        """Hang: accept requests, answer none, send nothing on watches, until `thaw`."""
        self._running.clear()

    def thaw(self) -> None:
        """Go on where `freeze` stopped."""
        self._running.set()

    @property
    def open_watches(self) -> int:
        """How many watches are open."""
        return len(self._streams)

    # ------------------------------------------------------------------ requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(Request(request.method, request.path, dict(request.query)))
        await self._running.wait()
        if self._token and request.headers.get("Authorization") != f"Bearer {self._token}":
            return _refused(StatusError(401, "Unauthorized", "Unauthorized"))
        try:
            return await self._answer(request)
        except StatusError as refusal:
            return _refused(refusal)
        except ConnectionCut:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.rstrip("/")
        if path in ("/readyz", "/livez", "/healthz"):
            return web.Response(text="ok")
        if path == "/version":
            return _json({"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "memory"})
        document = self._discovery(path)
        if document is not None:
            return _json(document)
        target = self._target(path)
        if request.method == "GET" and target.key is None and _flag(request, "watch"):
            return await self._watch(request, target)
        handlers: dict[str, Callable[[web.BaseRequest, _Target], Awaitable[web.StreamResponse]]] = {
            "GET": self._get,
            "POST": self._post,
            "PUT": self._put,
            "PATCH": self._patch,
            "DELETE": self._delete,
        }
        handler = handlers.get(request.method)
        if handler is None:
            raise method_not_allowed()
        return await handler(request, target)

    def _discovery(self, path: str) -> Object | None:
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = sorted({(k.resource.group, k.resource.version) for k in self.api.kinds if k.resource.group})
            shown = [
                {"name": group, "versions": [{"groupVersion": f"{group}/{version}", "version": version}]}
                for group, version in groups
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": shown}
        here = [kind for kind in self.api.kinds if kind.resource.root == path]
        if not here:
            return None
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        resources = []
        for kind in here:
            named = {"kind": kind.resource.kind, "namespaced": kind.resource.namespaced, "singularName": ""}
            resources.append({"name": kind.resource.plural, "verbs": verbs, **named})
            if kind.status:
                resources.append(
                    {"name": f"{kind.resource.plural}/status", "verbs": ["get", "patch", "update"], **named}
                )
            if kind.scale:
                resources.append(
                    {"name": f"{kind.resource.plural}/scale", "verbs": ["get", "patch", "update"], **named}
                )
        version = here[0].resource.api_version
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}

    def _target(self, path: str) -> _Target:
        parts = path.strip("/").split("/")
        if parts[0] == "api" and len(parts) > 2:
            group, version, rest = "", parts[1], parts[2:]
        elif parts[0] == "apis" and len(parts) > 3:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            raise unknown_resource()
        namespace: str | None = None
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        kind = self.api.kind_at(group, rest[0])
        if kind.resource.version != version or (namespace is not None and not kind.resource.namespaced):
            raise unknown_resource()
        key = Key(namespace or "", rest[1]) if len(rest) > 1 else None
        return _Target(kind, namespace, key, rest[2] if len(rest) > 2 else "")

    def _store(self, request: web.BaseRequest) -> MemoryApi:
        """The API to write to: a throw-away copy for a dry run."""
        return self.api.fork() if request.query.get("dryRun") == "All" else self.api

    async def _get(self, request: web.BaseRequest, target: _Target) -> web.Response:
        if target.key is not None:
            if target.subresource == "scale":
                return _json(self.api.get_scale(target.resource, target.key))
            return _json(self.api.record(target.resource, target.key).wire())
        page = self.api.page(
            target.resource,
            target.namespace,
            label_selector=request.query.get("labelSelector", ""),
            field_selector=request.query.get("fieldSelector", ""),
            limit=_number(request, "limit") or 0,
            token=request.query.get("continue", ""),
        )
        meta: Object = {"resourceVersion": str(page.resource_version)}
        if page.next_token:
            meta["continue"] = page.next_token
        if page.next_token and page.remaining is not None:
            meta["remainingItemCount"] = page.remaining
        resource = target.resource
        items = [record.wire() for record in page.records]
        kind = f"{resource.kind}List"
        return _json({"kind": kind, "apiVersion": resource.api_version, "metadata": meta, "items": items})

    async def _body(self, request: web.BaseRequest, target: _Target) -> Object:
        body = _decoded(await request.read())
        unknown: list[str] = []
        if target.kind.is_custom and target.subresource != "scale":
            if not body.get("kind"):
                raise bad_request("the object provided is unrecognized: Object 'Kind' is missing")
            pruned(body, target.kind.schema, "", unknown)
        if unknown and request.query.get("fieldValidation") == "Strict":
            shown = ", ".join(f'unknown field "{path}"' for path in unknown)
            version = f"{target.resource.kind} in version {target.resource.version!r}".replace("'", '"')
            raise bad_request(
                f"{version} cannot be handled as a {target.resource.kind}: strict decoding error: {shown}"
            )
        self._match_url(body.setdefault("metadata", {}), target)
        return body

    @staticmethod
    def _match_url(meta: Any, target: _Target) -> None:
        if not isinstance(meta, dict):
            raise bad_request("metadata must be an object")
        namespace = target.namespace
        if namespace is not None and meta.setdefault("namespace", namespace) != namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        if target.key is not None and meta.setdefault("name", target.key.name) != target.key.name:
            named = f"the name of the object ({meta['name']})"
            raise bad_request(f"{named} does not match the name on the URL ({target.key.name})")

    async def _post(self, request: web.BaseRequest, target: _Target) -> web.Response:
        if target.key is not None:
            return await self._post_subresource(request, target, target.key)
        body = await self._body(request, target)
        store = self._store(request)
        created = store.create(target.resource, body, field_manager=_manager(request))
        return _json(self._wire(store, target.resource, created), 201)

    async def _post_subresource(self, request: web.BaseRequest, target: _Target, key: Key) -> web.Response:
        body = _decoded(await request.read())
        if target.resource == PODS and target.subresource == "binding":
            self.api.bind(key, str(body["target"]["name"]), field_manager=_manager(request))
        elif target.resource == PODS and target.subresource == "eviction":
            options = body.get("deleteOptions") or {}
            self.api.delete(PODS, key, grace_seconds=options.get("gracePeriodSeconds"), field_manager=_manager(request))
        else:
            raise method_not_allowed()
        return _json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)

    async def _put(self, request: web.BaseRequest, target: _Target) -> web.Response:
        key = self._named(target)
        body = await self._body(request, target)
        store = self._store(request)
        if target.subresource == "scale":
            return _json(store.scale(target.resource, key, _replicas(body), field_manager=_manager(request)))
        done = store.replace(target.resource, body, field_manager=_manager(request), subresource=target.subresource)
        return _json(self._wire(store, target.resource, done))

    async def _patch(self, request: web.BaseRequest, target: _Target) -> web.Response:
        key = self._named(target)
        store = self._store(request)
        manager, raw = _manager(request), await request.read()
        match request.content_type:
            case content if content == _APPLY:
                return self._apply(request, target, key, store, raw)
            case content if content == _MERGE:
                patch = _decoded(raw)
                if target.subresource == "scale":
                    return _json(store.scale(target.resource, key, _replicas(patch), field_manager=manager))
                done = store.merge_patch(
                    target.resource, key, patch, field_manager=manager, subresource=target.subresource
                )
            case content if content == _JSON_PATCH:
                done = store.json_patch(
                    target.resource, key, orjson.loads(raw), field_manager=manager, subresource=target.subresource
                )
            case content:
                raise unsupported_media_type(content)
        return _json(self._wire(store, target.resource, done))

    def _apply(self, request: web.BaseRequest, target: _Target, key: Key, store: MemoryApi, raw: bytes) -> web.Response:
        if not request.query.get("fieldManager"):
            cause = Cause("FieldValueRequired", "Required value: is required for apply patch", "fieldManager")
            raise invalid(_PATCH_OPTIONS, "", [cause])
        config = yaml.safe_load(raw)
        if not isinstance(config, dict):
            raise bad_request("error decoding YAML: not an object")
        if not config.get("kind") or not config.get("apiVersion"):
            raise bad_request("invalid object type: kind and apiVersion are required")
        if not (config.get("metadata") or {}).get("name"):
            why = f"the name of the object ({key.name} based on URL) was undeterminable: name must be provided"
            raise bad_request(why)
        self._match_url(config["metadata"], target)
        existed = store.find(target.resource, key) is not None
        done = store.apply(
            target.resource,
            config,
            field_manager=_manager(request),
            force=_flag(request, "force"),
            subresource=target.subresource,
        )
        return _json(self._wire(store, target.resource, done), 200 if existed else 201)

    async def _delete(self, request: web.BaseRequest, target: _Target) -> web.Response:
        raw = await request.read()
        options = _decoded(raw) if raw else {}
        manager = _manager(request)
        if target.key is None:
            return self._delete_collection(request, target, manager)
        if target.subresource:
            raise method_not_allowed()
        preconditions = options.get("preconditions") or {}
        grace = options.get("gracePeriodSeconds")
        policy = options.get("propagationPolicy") or request.query.get("propagationPolicy")
        store = self._store(request)
        done = store.delete(
            target.resource,
            target.key,
            uid=preconditions.get("uid"),
            resource_version=preconditions.get("resourceVersion"),
            grace_seconds=_number(request, "gracePeriodSeconds") if grace is None else int(grace),
            orphan=policy == "Orphan",
            field_manager=manager,
        )
        if target.resource in _RETURNS_DELETED or store.find(target.resource, target.key) is not None:
            return _json(done)
        resource = target.resource
        details: Object = {"name": target.key.name, "kind": resource.plural, "uid": done["metadata"]["uid"]}
        if resource.group:
            details["group"] = resource.group
        return _json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})

    def _delete_collection(self, request: web.BaseRequest, target: _Target, manager: str) -> web.Response:
        page = self.api.page(
            target.resource,
            target.namespace,
            label_selector=request.query.get("labelSelector", ""),
            field_selector=request.query.get("fieldSelector", ""),
        )
        for record in page.records:
            meta = record.manifest["metadata"]
            with contextlib.suppress(StatusError):
                self.api.delete(target.resource, Key(meta.get("namespace", ""), meta["name"]), field_manager=manager)
        kind = f"{target.resource.kind}List"
        items = [record.wire() for record in page.records]
        return _json({"kind": kind, "apiVersion": target.resource.api_version, "metadata": {}, "items": items})

    @staticmethod
    def _named(target: _Target) -> Key:
        if target.key is None:
            raise method_not_allowed()
        return target.key

    @staticmethod
    def _wire(store: MemoryApi, resource: Resource, done: Object) -> Object:
        meta = done["metadata"]
        try:
            return store.record(resource, Key(meta.get("namespace", ""), meta["name"])).wire()
        except StatusError:
            return done  # the write removed the last finalizer, and the object with it

    # ------------------------------------------------------------------ watches

    async def _watch(self, request: web.BaseRequest, target: _Target) -> web.StreamResponse:
        stream = _Stream(self, target, request)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self._streams.add(stream)
        unsubscribe = [self.api.subscribe(stream.wake.set), self.api.faults.subscribe(stream.wake.set)]
        seconds = _number(request, "timeoutSeconds")
        try:
            async with asyncio.timeout(seconds or None):
                await self._send(response, stream, request.query.get("resourceVersion", ""))
        except TimeoutError:
            await response.write_eof()
        except ConnectionResetError:
            pass  # the client is gone, which ends a watch like any other way
        finally:
            self._streams.discard(stream)
            for end in unsubscribe:
                end()
        if stream.is_cut and request.transport is not None:
            request.transport.abort()
        return response

    async def _send(self, response: web.StreamResponse, stream: _Stream, version: str) -> None:
        if version in ("", "0") or stream.wants_initial_end:
            for line in stream.initial():
                await response.write(line)
        else:
            stream.version = int(version)
        while not stream.is_cut:
            stream.wake.clear()
            try:
                lines = stream.pending()
            except StatusError as refusal:
                await response.write(stream.line("ERROR", refusal.status))
                return
            await self._running.wait()
            if lines:
                await response.write(b"".join(lines))
            await self._next(stream)

    async def _next(self, stream: _Stream) -> None:
        try:
            async with asyncio.timeout(self._bookmark_seconds):
                await stream.wake.wait()
        except TimeoutError:
            stream.bookmark_due = True


def _replicas(body: Mapping[str, Any]) -> int:
    spec = body.get("spec")
    replicas = spec.get("replicas", 0) if isinstance(spec, Mapping) else 0
    if not isinstance(replicas, int):
        raise bad_request("spec.replicas must be an integer")
    return replicas
