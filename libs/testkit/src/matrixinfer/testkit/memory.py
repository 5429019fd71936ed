"""The API server as a plain object: real semantics, no socket, no event loop, time as an argument.

Owns storage, history and every rule of writing. Refuses HTTP (`apiserver`), admission, authorisation and CEL. The
trap: stored manifests are shared with the history and with forks, so nothing here may edit one in place.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from re import compile as compiled
from typing import Any, Final, Literal
from uuid import UUID

import jsonpatch
import orjson

from matrixinfer.kube.resource import CUSTOM_RESOURCE_DEFINITIONS, NAMESPACES, PODS, Key, Manifest, Resource
from matrixinfer.testkit import ownership
from matrixinfer.testkit.builtin_rules import check_update, with_built_in_defaults
from matrixinfer.testkit.clock import rfc3339
from matrixinfer.testkit.faults import Faults
from matrixinfer.testkit.fieldsets import FieldSet, changed_paths, field_set
from matrixinfer.testkit.kinds import BUILT_IN, KindSpec, crds_in, kind_of_crd
from matrixinfer.testkit.records import Change, ChangeType, Manager, Object, Owned, Record, copied
from matrixinfer.testkit.selectors import field_predicate, label_predicate
from matrixinfer.testkit.status_errors import (
    Cause,
    ConnectionCut,
    StatusError,
    already_exists,
    bad_request,
    conflict,
    expired,
    invalid,
    not_found,
    unknown_resource,
)
from matrixinfer.testkit.structural import defaulted, problems, pruned

__all__ = ["ConnectionCut", "MemoryApi", "Page", "StatusError", "Write"]

_NAME: Final = compiled(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_SUFFIX_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
_FIRST_NAMESPACES: Final = ("default", "kube-system", "kube-public", "kube-node-lease", "matrixinfer-system")
_SERVER_METADATA: Final = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds")
SYSTEM_MANAGERS: Final = frozenset({"kube-scheduler", "kubelet", "kube-controller-manager"})
"""Writers that belong to the cluster: not in the write log, never hit by faults."""

# `MemoryApi.list` hides the builtin from annotations inside the class.
Objects = list[Object]
Changes = list[Change]
Entries = list[tuple[Key, Record]]
Listeners = list[Callable[[], None]]
Resources = list[Resource]

Verb = Literal["create", "apply", "patch", "update", "delete"]


@dataclass(frozen=True, slots=True)
class Write:
    """One write request as the server saw it; `changed` is False when it left everything as it was."""

    number: int
    verb: Verb
    resource: Resource
    key: Key
    subresource: str
    manager: str
    code: int
    changed: bool


Writes = list[Write]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list."""

    records: Sequence[Record]
    resource_version: int
    next_token: str = ""
    remaining: int | None = None


def _utcnow() -> datetime:
    return datetime.now(UTC)


def _plain(manifest: Mapping[str, Any]) -> Object:
    decoded: Object = orjson.loads(orjson.dumps(manifest, default=dict))
    return decoded


def _merge_patched(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            out.pop(name, None)
        else:
            out[name] = _merge_patched(out.get(name), value)
    return out


def _at(manifest: Mapping[str, Any], path: str) -> Any:
    value: Any = manifest
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _with(manifest: Object, path: Sequence[str], value: Any) -> Object:
    if not path:
        return value  # type: ignore[no-any-return]  # the innermost step hands the value itself back
    head, *rest = path
    return {**manifest, head: _with(manifest.get(head) or {}, rest, value)}


class MemoryApi:
    """An in-memory API server to call directly; see the README for the tour."""

    def __init__(
        self,
        *,
        now: Callable[[], datetime] = _utcnow,
        auto_gc: bool = True,
        faults: Faults | None = None,
    ) -> None:
        self.now = now
        self.auto_gc = auto_gc
        self.faults = faults or Faults()
        self.writes: Writes = []
        self.write_count = 0
        self._kinds: dict[tuple[str, str], KindSpec] = {}
        self._objects: dict[tuple[str, str], dict[Key, Record]] = {}
        self._history: dict[tuple[str, str], Changes] = {}
        self._snapshots: dict[tuple[int, str, str], Entries] = {}
        self._version = 1
        self._compacted = 0
        self._serial = 0
        self._listeners: Listeners = []
        for kind in BUILT_IN:
            self.register(kind)
        for name in _FIRST_NAMESPACES:
            self._put_namespace(name)

    # ------------------------------------------------------------------ kinds

    def register(self, kind: KindSpec) -> None:
        """Serve one more kind, or another version of its schema."""
        where = (kind.resource.group, kind.resource.plural)
        self._kinds[where] = kind
        self._objects.setdefault(where, {})
        self._history.setdefault(where, [])

    def register_crds(self, path: Path) -> Sequence[Resource]:
        """Create every CustomResourceDefinition in a file or folder of YAML and return the kinds they serve."""
        found: Resources = []
        for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
            for crd, kind in crds_in(file):
                self.apply(CUSTOM_RESOURCE_DEFINITIONS, crd, field_manager="kube-controller-manager", force=True)
                self.register(kind)
                found.append(kind.resource)
        return found

    @property
    def kinds(self) -> Sequence[KindSpec]:
        """Every kind that is served now."""
        return tuple(self._kinds.values())

    def kind(self, resource: Resource) -> KindSpec:
        """The kind as this server treats it; 404 when it serves no such thing."""
        return self.kind_at(resource.group, resource.plural)

    def kind_at(self, group: str, plural: str) -> KindSpec:
        """The kind of a URL; 404 when there is none."""
        kind = self._kinds.get((group, plural))
        if kind is None:
            raise unknown_resource()
        return kind

    # ------------------------------------------------------------------ reading

    @property
    def resource_version(self) -> int:
        """The version of the newest change."""
        return self._version

    def record(self, resource: Resource, key: Key) -> Record:
        """The stored record; 404 when there is none."""
        record = self._records(resource).get(key)
        if record is None:
            raise not_found(resource, key)
        return record

    def get(self, resource: Resource, key: Key) -> Object:
        """One object, without managedFields; 404 when there is none."""
        return copied(self.record(resource, key).manifest)  # type: ignore[no-any-return]  # copied keeps the type

    def find(self, resource: Resource, key: Key) -> Object | None:
        """One object, None when there is none."""
        record = self._records(resource).get(key)
        return None if record is None else copied(record.manifest)

    def managed_fields(self, resource: Resource, key: Key) -> Objects:
        """Who owns what of one object."""
        return self.record(resource, key).managed_fields()

    def list(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> Objects:
        """All matching objects in the order of their keys, without managedFields."""
        page = self.page(resource, namespace, label_selector=label_selector, field_selector=field_selector)
        return [copied(record.manifest) for record in page.records]

    def page(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 0,
        token: str = "",
    ) -> Page:
        """One page of a consistent list; 410 for a token older than the last compaction."""
        version, start = self._version, Key("", "")
        if token:
            try:
                version, namespace_after, name_after = orjson.loads(bytes.fromhex(token))
            except ValueError as exc:
                raise bad_request("continue key is not valid: not a token of this server") from exc
            start = Key(namespace_after, name_after)
        entries = self._at_version(resource, version) if token else sorted(self._records(resource).items())
        matches = self._selector(namespace, label_selector, field_selector)
        wanted = [(key, record) for key, record in entries if key > start and matches(key, record)]
        if not limit or len(wanted) <= limit:
            return Page([record for _, record in wanted], version)
        self._snapshots[(version, resource.group, resource.plural)] = list(entries)
        last = wanted[limit - 1][0]
        return Page(
            [record for _, record in wanted[:limit]],
            version,
            orjson.dumps([version, last.namespace, last.name]).hex(),
            None if label_selector or field_selector else len(wanted) - limit,
        )

    def _at_version(self, resource: Resource, version: int) -> Entries:
        snapshot = self._snapshots.get((version, resource.group, resource.plural))
        if snapshot is None:
            raise expired("The provided continue parameter is too old to display a consistent list result.")
        return snapshot

    @staticmethod
    def _selector(namespace: str | None, labels: str, fields: str) -> Callable[[Key, Record], bool]:
        by_label, by_field = label_predicate(labels), field_predicate(fields)

        def matches(key: Key, record: Record) -> bool:
            return (
                (namespace is None or key.namespace == namespace)
                and (by_label is None or by_label(record.manifest))
                and (by_field is None or by_field(record.manifest))
            )

        return matches

    def changes(
        self,
        resource: Resource,
        since: int,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
    ) -> Changes:
        """What a watch from version `since` sees, selectors turned into additions and deletions; 410 when too old."""
        if since < self._compacted:
            raise expired(f"too old resource version: {since} ({self._compacted})")
        history = self._history[(resource.group, resource.plural)]
        first = bisect_right(history, since, key=lambda change: change.resource_version)
        if first == len(history):
            return []
        matches = self._selector(namespace, label_selector, field_selector)
        seen: Changes = []
        for change in history[first:]:
            had = change.before is not None and matches(change.key, change.before)
            has = change.type != "DELETED" and matches(change.key, change.after)
            kind: ChangeType | None = None
            if had and has:
                kind = "MODIFIED"
            elif has:
                kind = "ADDED"
            elif had:
                kind = "DELETED"
            if kind is not None:
                seen.append(
                    Change(change.resource_version, kind, change.resource, change.key, change.before, change.after)
                )
        return seen

    def compact(self) -> None:
        """Forget the history: watches and continue tokens from before are 410 Gone."""
        self._compacted = self._version
        self._snapshots.clear()
        for history in self._history.values():
            history.clear()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every change; returns what ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def fork(self) -> "MemoryApi":
        """Return an independent copy with the same objects and history, no armed faults, no listeners."""
        twin = MemoryApi.__new__(MemoryApi)
        twin.__dict__.update(
            self.__dict__,
            faults=Faults(),
            writes=list(self.writes),
            _kinds=dict(self._kinds),
            _objects={where: dict(records) for where, records in self._objects.items()},
            _history={where: list(changes) for where, changes in self._history.items()},
            _snapshots=dict(self._snapshots),
            _listeners=[],
        )
        return twin

    # ------------------------------------------------------------------ writing

    def create(self, resource: Resource, manifest: Manifest, *, field_manager: str = "testkit") -> Object:
        """Create; 409 AlreadyExists, 404 for a missing namespace, 422 for what the schema refuses."""
        body = self._with_type(resource, _plain(manifest))
        key = self._new_key(resource, body)
        return self._write(
            "create", resource, key, "", field_manager, lambda: self._create(resource, key, body, field_manager)
        )

    def apply(
        self,
        resource: Resource,
        manifest: Manifest,
        *,
        field_manager: str = "testkit",
        force: bool = False,
        subresource: str = "",
    ) -> Object:
        """Server-side apply; 409 with one cause per field when others own what it changes and `force` is not given."""
        body = self._with_type(resource, _plain(manifest))
        if "managedFields" in body["metadata"]:
            raise bad_request("metadata.managedFields must be nil")
        key = self._key_of(resource, body)
        return self._write(
            "apply",
            resource,
            key,
            subresource,
            field_manager,
            lambda: self._apply(resource, key, body, field_manager, subresource, force=force),
        )

    def replace(
        self, resource: Resource, manifest: Manifest, *, field_manager: str = "testkit", subresource: str = ""
    ) -> Object:
        """PUT: 409 when `metadata.resourceVersion` is given and stale."""
        body = self._with_type(resource, _plain(manifest))
        key = self._key_of(resource, body)
        return self._write(
            "update", resource, key, subresource, field_manager,
            lambda: self._edit(resource, key, subresource, field_manager, lambda _live: body, "update"),
        )  # fmt: skip

    def merge_patch(
        self, resource: Resource, key: Key, patch: Manifest, *, field_manager: str = "testkit", subresource: str = ""
    ) -> Object:
        """JSON merge patch; `metadata.uid` and `metadata.resourceVersion` in it are preconditions."""
        body = _plain(patch)
        return self._write(
            "patch", resource, key, subresource, field_manager,
            lambda: self._edit(resource, key, subresource, field_manager, lambda live: _merge_patched(live, body)),
        )  # fmt: skip

    def json_patch(
        self,
        resource: Resource,
        key: Key,
        operations: Sequence[Mapping[str, Any]],
        *,
        field_manager: str = "testkit",
        subresource: str = "",
    ) -> Object:
        """RFC 6902 patch; 422 when it does not apply."""

        def patched(live: Object) -> Object:
            try:
                done: Object = jsonpatch.apply_patch(copied(live), [dict(operation) for operation in operations])
            except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as exc:
                raise StatusError(422, "Invalid", f"the server rejected our request: {exc}") from exc
            return done

        return self._write(
            "patch", resource, key, subresource, field_manager,
            lambda: self._edit(resource, key, subresource, field_manager, patched),
        )  # fmt: skip

    def scale(self, resource: Resource, key: Key, replicas: int, *, field_manager: str = "testkit") -> Object:
        """Set the replicas through the scale subresource; returns the `Scale` object."""
        paths = self.kind(resource).scale
        if paths is None:
            raise unknown_resource()
        path = paths.spec_replicas.split(".")
        self._write(
            "update", resource, key, "scale", field_manager,
            lambda: self._edit(resource, key, "scale", field_manager, lambda live: _with(live, path, replicas)),
        )  # fmt: skip
        return self.get_scale(resource, key)

    def get_scale(self, resource: Resource, key: Key) -> Object:
        """The `Scale` view of an object."""
        paths = self.kind(resource).scale
        if paths is None:
            raise unknown_resource()
        manifest = self.record(resource, key).manifest
        meta = manifest["metadata"]
        status: Object = {"replicas": _at(manifest, paths.status_replicas) or 0}
        if paths.label_selector and _at(manifest, paths.label_selector):
            status["selector"] = _at(manifest, paths.label_selector)
        shown = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        return {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": {name: meta[name] for name in shown if name in meta},
            "spec": {"replicas": _at(manifest, paths.spec_replicas) or 0},
            "status": status,
        }

    def bind(self, key: Key, node: str, *, field_manager: str = "kube-scheduler") -> None:
        """Bind a pod to a node, as the scheduler does; 409 when it is bound already."""

        def bound(live: Object) -> Object:
            if live["spec"].get("nodeName"):
                raise conflict(PODS, key, f"pod {key.name} is already assigned to node {live['spec']['nodeName']!r}")
            return _with(live, ("spec", "nodeName"), node)

        self._write(
            "create", PODS, key, "binding", field_manager,
            lambda: self._edit(PODS, key, "binding", field_manager, bound),
        )  # fmt: skip

    def delete(
        self,
        resource: Resource,
        key: Key,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_seconds: int | None = None,
        orphan: bool = False,
        field_manager: str = "testkit",
    ) -> Object:
        """Delete, or mark when finalizers or a pod's grace period are in the way; 409 for another's uid."""

        def effect() -> Object:
            live = self.record(resource, key)
            self._check_preconditions(resource, key, live, uid, resource_version)
            if orphan:
                self._orphan_dependents(live.uid)
            return self._delete(resource, key, grace_seconds)

        done = self._write("delete", resource, key, "", field_manager, effect)
        if self.auto_gc:
            self.collect_garbage()
        return done

    def _write(
        self, verb: Verb, resource: Resource, key: Key, subresource: str, manager: str, effect: Callable[[], Object]
    ) -> Object:
        if manager in SYSTEM_MANAGERS:
            return copied(effect())  # type: ignore[no-any-return]  # copied keeps the type
        self.write_count += 1
        number, before, code = self.write_count, self._version, 0
        try:
            self.faults.before(number, verb, resource)
            done = effect()
            code = 201 if verb == "create" else 200
        except StatusError as refusal:
            code = refusal.code
            raise
        finally:
            self.writes.append(
                Write(number, verb, resource, key, subresource, manager, code, changed=self._version != before)
            )
        self.faults.after(number, verb, resource)
        return copied(done)  # type: ignore[no-any-return]  # copied keeps the type

    # ------------------------------------------------------------------ the rules

    def _records(self, resource: Resource) -> dict[Key, Record]:
        self.kind(resource)
        return self._objects[(resource.group, resource.plural)]

    def _with_type(self, resource: Resource, body: Object) -> Object:
        is_custom = self.kind(resource).is_custom
        meta = body.get("metadata")
        if not isinstance(meta, dict):
            body["metadata"] = meta = {}
        if body.setdefault("apiVersion", resource.api_version) != resource.api_version:
            raise bad_request(
                f"the API version in the data ({body['apiVersion']}) does not match"
                f" the expected API version ({resource.api_version})"
            )
        if body.setdefault("kind", resource.kind) != resource.kind:
            if is_custom:
                message = f'Invalid value: "{body["kind"]}": must be {resource.kind}'
                raise invalid(resource, str(meta.get("name", "")), [Cause("FieldValueInvalid", message, "kind")])
            version = f'{body["kind"]} in version "{body["apiVersion"]}"'
            raise bad_request(f"{version} cannot be handled as a {resource.kind}")
        return body

    @staticmethod
    def _key_of(resource: Resource, body: Object) -> Key:
        meta = body["metadata"]
        if not meta.get("name"):
            missing = "Required value: name or generateName is required"
            raise invalid(resource, "", [Cause("FieldValueRequired", missing, "metadata.name")])
        namespace = str(meta.setdefault("namespace", "default")) if resource.namespaced else ""
        return Key(namespace, str(meta["name"]))

    def _new_key(self, resource: Resource, body: Object) -> Key:
        meta = body["metadata"]
        if not meta.get("name") and meta.get("generateName"):
            self._serial += 1
            suffix, rest = "", self._serial + 27**4
            for _ in range(5):
                rest, digit = divmod(rest, len(_SUFFIX_ALPHABET))
                suffix = _SUFFIX_ALPHABET[digit] + suffix
            meta["name"] = f"{meta['generateName']}{suffix}"
        key = self._key_of(resource, body)
        if not _NAME.match(key.name) and not resource.group.startswith("rbac."):
            detail = (
                f'Invalid value: "{key.name}": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric '
                "characters, '-' or '.', and must start and end with an alphanumeric character"
            )
            raise invalid(resource, key.name, [Cause("FieldValueInvalid", detail, "metadata.name")])
        return key

    def _check_namespace(self, resource: Resource, key: Key) -> None:
        if not resource.namespaced:
            return
        namespace = self._objects[("", "namespaces")].get(Key("", key.namespace))
        if namespace is None:
            raise not_found(NAMESPACES, Key("", key.namespace))
        if namespace.is_deleting:
            raise StatusError(
                403,
                "Forbidden",
                f'{resource.plural} "{key.name}" is forbidden: unable to create new content in namespace '
                f"{key.namespace} because it is being terminated",
                resource=resource,
                name=key.name,
                causes=[
                    Cause(
                        "NamespaceTerminating", f"namespace {key.namespace} is being terminated", "metadata.namespace"
                    )
                ],
            )

    @staticmethod
    def _check_preconditions(
        resource: Resource, key: Key, live: Record, uid: str | None, resource_version: str | None
    ) -> None:
        if uid and uid != live.uid:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {live.uid}"
            raise conflict(resource, key, why)
        if resource_version and resource_version != str(live.resource_version):
            why = (
                f"Precondition failed: ResourceVersion in precondition: {resource_version}, "
                f"ResourceVersion in object meta: {live.resource_version}"
            )
            raise conflict(resource, key, why)

    def _normal(self, kind: KindSpec, body: Object) -> Object:
        """The body as it is stored: pruned and defaulted; 422 with all causes when it breaks the schema."""
        resource = kind.resource
        if not kind.is_custom:
            self._serial += 1
            return with_built_in_defaults(resource, body, self._serial)
        normal: Object = defaulted(pruned(body, kind.schema), kind.schema)
        causes = [*problems(normal, kind.schema), *self._scale_problems(kind, normal)]
        if causes:
            raise invalid(resource, str(body["metadata"].get("name", "")), causes)
        return normal

    @staticmethod
    def _scale_problems(kind: KindSpec, body: Object) -> Iterable[Cause]:
        replicas = _at(body, kind.scale.spec_replicas) if kind.scale else None
        if kind.scale and isinstance(replicas, int) and replicas < 0:
            message = f"Invalid value: {replicas}: should be a non-negative integer"
            yield Cause("FieldValueInvalid", message, "." + kind.scale.spec_replicas)

    def _create(
        self,
        resource: Resource,
        key: Key,
        body: Object,
        manager: str,
        *,
        fields: FieldSet | None = None,
    ) -> Object:
        kind = self.kind(resource)
        self._check_namespace(resource, key)
        if key in self._records(resource):
            raise already_exists(resource, key)
        if body["metadata"].get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        if kind.status and resource not in (NAMESPACES, CUSTOM_RESOURCE_DEFINITIONS):
            body.pop("status", None)
        self._serial += 1
        meta = {name: value for name, value in body["metadata"].items() if name not in ("managedFields", "selfLink")}
        for name in _SERVER_METADATA:
            meta.pop(name, None)
        meta["uid"] = str(UUID(int=self._serial + 0x6D617472_6978_4000_8000_000000000000))
        meta["creationTimestamp"] = rfc3339(self.now())
        if kind.has_generation:
            meta["generation"] = 1
        normal = self._normal(kind, {**body, "metadata": meta})
        me = Manager(manager, "Update" if fields is None else "Apply", "", resource.api_version)
        if fields is None:
            managed = ownership.owners_after_update(
                {}, me, {}, normal, kind.schema, rfc3339(self.now()), has_status=kind.status
            )
        else:
            managed = {me: Owned(fields, rfc3339(self.now()))}
        stored = self._commit("ADDED", resource, key, normal, managed)
        if resource == CUSTOM_RESOURCE_DEFINITIONS:
            self.register(kind_of_crd(stored.manifest))
        return stored.manifest

    def _apply(
        self, resource: Resource, key: Key, config: Object, manager: str, subresource: str, *, force: bool
    ) -> Object:
        kind = self.kind(resource)
        live = self._records(resource).get(key)
        me = Manager(manager, "Apply", subresource, resource.api_version)
        self._check_declared(kind, config)
        if live is None:
            return self._apply_new(kind, key, config, me)
        meta = config["metadata"]
        if meta.get("resourceVersion") not in (None, str(live.resource_version)):
            raise self._modified(resource, key)
        self._check_uid(kind, key, live, meta, subresource)
        config = self._writable_part(kind, config, live.manifest, subresource, merge=True)
        result = ownership.applied(
            live.manifest, config, kind.schema, live.managed, me, has_status=kind.status and not subresource
        )
        touched, _ = changed_paths(live.manifest, result.manifest, kind.schema)
        refusal = None if force else ownership.apply_conflict(resource, key, touched & result.fields, live.managed, me)
        if refusal is not None:
            raise refusal
        normal = self._updated(kind, live, result.manifest, subresource)
        managed = ownership.owners_after_apply(
            live.managed, me, result.fields, live.manifest, normal, kind.schema, rfc3339(self.now())
        )
        return self._store_update(kind, key, live, normal, managed)

    def _apply_new(self, kind: KindSpec, key: Key, config: Object, me: Manager) -> Object:
        resource = kind.resource
        if me.subresource:
            raise not_found(resource, key)
        uid = config["metadata"].get("uid")
        if uid:
            why = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            raise conflict(resource, key, why)
        fields = ownership.strip_unowned(field_set(config, kind.schema), subresource="", has_status=kind.status)
        return self._create(resource, self._new_key(resource, config), config, me.name, fields=fields)

    @staticmethod
    def _check_declared(kind: KindSpec, config: Object) -> None:
        unknown: list[str] = []
        if kind.is_custom:
            pruned(config, kind.schema, "", unknown)
        if unknown:
            resource = kind.resource
            where = f"{config['metadata'].get('namespace', '')}/{config['metadata']['name']}"
            lines = "\n".join(f".{path}: field not declared in schema" for path in unknown)
            raise StatusError(
                500,
                "InternalError",
                f"failed to create typed patch object ({where}; {resource.api_version}, Kind={resource.kind}): {lines}",
            )

    def _check_replacement(self, kind: KindSpec, key: Key, live: Record, meta: Object) -> None:
        """What a PUT has to carry: the version where updates are conditional, and no other object's uid."""
        if kind.is_custom and not meta.get("resourceVersion"):
            message = "Invalid value: 0: must be specified for an update"
            raise invalid(kind.resource, key.name, [Cause("FieldValueInvalid", message, "metadata.resourceVersion")])
        self._check_preconditions(kind.resource, key, live, meta.get("uid"), None)

    @staticmethod
    def _check_uid(kind: KindSpec, key: Key, live: Record, meta: Object, subresource: str) -> None:
        """A patch that names another uid is invalid. On the status of a custom kind the server ignores all metadata."""
        if subresource == "status" and kind.is_custom:
            return
        uid = meta.get("uid")
        if uid and uid != live.uid:
            message = f'Invalid value: "{uid}": field is immutable'
            raise invalid(kind.resource, key.name, [Cause("FieldValueInvalid", message, "metadata.uid")])

    def _edit(
        self,
        resource: Resource,
        key: Key,
        subresource: str,
        manager: str,
        edit: Callable[[Object], Object],
        verb: Verb = "patch",
    ) -> Object:
        kind = self.kind(resource)
        if subresource == "status" and not kind.status:
            raise unknown_resource()
        live = self.record(resource, key)
        body = edit(live.manifest)
        meta = body.get("metadata") or {}
        if meta.get("resourceVersion") not in (None, "", str(live.resource_version)):
            raise self._modified(resource, key)
        if meta.get("name", key.name) != key.name:
            raise bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL ({key.name})"
            )
        if verb == "update" and subresource != "scale":
            self._check_replacement(kind, key, live, meta)
        else:
            self._check_uid(kind, key, live, meta, subresource)
        body = self._writable_part(kind, body, live.manifest, subresource, merge=False)
        normal = self._updated(kind, live, body, subresource)
        managed = ownership.owners_after_update(
            live.managed,
            Manager(manager, "Update", subresource, resource.api_version),
            live.manifest,
            normal,
            kind.schema,
            rfc3339(self.now()),
            has_status=kind.status and subresource != "status",
        )
        return self._store_update(kind, key, live, normal, managed)

    @staticmethod
    def _modified(resource: Resource, key: Key) -> StatusError:
        why = "the object has been modified; please apply your changes to the latest version and try again"
        return conflict(resource, key, why)

    @staticmethod
    def _writable_part(kind: KindSpec, body: Object, live: Object, subresource: str, *, merge: bool) -> Object:
        """The body without what this endpoint ignores: status on the main one, all but status on the other."""
        if subresource == "status":
            base: Object = {name: body[name] for name in ("apiVersion", "kind", "metadata")} if merge else dict(live)
            base.pop("status", None)
            return {**base, **({"status": body["status"]} if "status" in body else {})}
        if not kind.status or kind.resource in (NAMESPACES, CUSTOM_RESOURCE_DEFINITIONS):
            return body
        rest = {name: value for name, value in body.items() if name != "status"}
        return rest if merge or "status" not in live else {**rest, "status": live["status"]}

    def _updated(self, kind: KindSpec, live: Record, body: Object, subresource: str) -> Object:
        """The new state of an existing object, with everything that a client cannot set taken from the live one."""
        old = live.manifest
        source = old["metadata"] if subresource == "status" else body.get("metadata", {})
        meta = {name: value for name, value in source.items() if name not in ("managedFields", "selfLink")}
        for name in ("name", "namespace", "resourceVersion", *_SERVER_METADATA):
            meta.pop(name, None)
            if name in old["metadata"]:
                meta[name] = old["metadata"][name]
        for name in ("labels", "annotations", "finalizers", "ownerReferences"):
            if not meta.get(name, True):
                del meta[name]
        if live.is_deleting:
            added = set(meta.get("finalizers", ())) - set(old["metadata"].get("finalizers", ()))
            if added:
                detail = (
                    "Forbidden: no new finalizers can be added if the object is being deleted,"
                    f" found new finalizers {sorted(added)}"
                )
                raise invalid(
                    kind.resource, meta["name"], [Cause("FieldValueForbidden", detail, "metadata.finalizers")]
                )
        merged_body = {**body, "apiVersion": old["apiVersion"], "kind": old["kind"], "metadata": meta}
        normal = self._normal(kind, merged_body)
        changed = [name for name in kind.immutable if name in old and normal.get(name) != old[name]]
        if changed:
            causes = [Cause("FieldValueInvalid", "Invalid value: field is immutable", name) for name in changed]
            raise invalid(kind.resource, meta["name"], causes)
        if not subresource:
            check_update(kind.resource, old, normal)
        if kind.has_generation and self._meaning(kind, normal) != self._meaning(kind, old):
            meta["generation"] = old["metadata"].get("generation", 0) + 1
            normal = {**normal, "metadata": meta}
        return normal

    @staticmethod
    def _meaning(kind: KindSpec, manifest: Object) -> Object:
        ignored = {"metadata", "status"} if kind.status else {"metadata"}
        return {name: value for name, value in manifest.items() if name not in ignored}

    def _store_update(
        self, kind: KindSpec, key: Key, live: Record, normal: Object, managed: Mapping[Manager, Owned]
    ) -> Object:
        resource = kind.resource
        if normal == live.manifest and {m: o.fields for m, o in managed.items()} == {
            m: o.fields for m, o in live.managed.items()
        }:
            return live.manifest
        meta = normal["metadata"]
        if live.is_deleting and not meta.get("finalizers") and not meta.get("deletionGracePeriodSeconds"):
            # The update that takes the last finalizer away is the deletion; nobody sees it as a modification.
            self._remove(resource, key, last=Record(normal, managed))
            return normal
        stored = self._commit("MODIFIED", resource, key, normal, managed)
        if resource == CUSTOM_RESOURCE_DEFINITIONS:
            self.register(kind_of_crd(stored.manifest))
        return stored.manifest

    # ------------------------------------------------------------------ deletion

    def _delete(self, resource: Resource, key: Key, grace_seconds: int | None = None) -> Object:
        live = self.record(resource, key)
        meta = live.manifest["metadata"]
        grace = self._grace(resource, live.manifest, grace_seconds)
        if live.is_deleting:
            left = meta.get("deletionGracePeriodSeconds", 0)
            if grace >= left and (left or meta.get("finalizers")):
                return live.manifest
        if not meta.get("finalizers") and not grace and resource != NAMESPACES:
            return self._remove(resource, key)
        marked = {
            **meta,
            "deletionTimestamp": rfc3339(self.now() + timedelta(seconds=grace)),
            "deletionGracePeriodSeconds": grace,
        }
        if self.kind(resource).has_generation and not live.is_deleting:
            marked["generation"] = meta.get("generation", 0) + 1
        body = {**live.manifest, "metadata": marked}
        if resource == NAMESPACES:
            body["status"] = {**body.get("status", {}), "phase": "Terminating"}
        stored = self._commit("MODIFIED", resource, key, body, live.managed)
        if resource == NAMESPACES:
            self._empty_namespace(key.name)
        return stored.manifest

    @staticmethod
    def _grace(resource: Resource, manifest: Object, asked: int | None) -> int:
        if resource != PODS:
            return 0
        finished = manifest.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if finished or not manifest["spec"].get("nodeName"):
            return 0
        default = manifest["spec"].get("terminationGracePeriodSeconds", 30)
        return max(0, int(default if asked is None else asked))

    def _remove(self, resource: Resource, key: Key, *, last: Record | None = None) -> Object:
        gone = self._objects[(resource.group, resource.plural)].pop(key)
        last = last or gone
        self._version += 1
        meta = {**last.manifest["metadata"], "resourceVersion": str(self._version)}
        final = {**last.manifest, "metadata": meta}
        self._record_change("DELETED", resource, key, gone, Record(final, last.managed))
        if resource == CUSTOM_RESOURCE_DEFINITIONS:
            self._unregister(kind_of_crd(gone.manifest).resource)
        return final

    def _unregister(self, resource: Resource) -> None:
        for key in sorted(self._objects[(resource.group, resource.plural)]):
            self._remove(resource, key)
        del self._kinds[(resource.group, resource.plural)]

    def _put_namespace(self, name: str) -> None:
        body: Object = {"metadata": {"name": name}, "status": {"phase": "Active"}}
        self.create(NAMESPACES, body, field_manager="kube-controller-manager")

    def _empty_namespace(self, name: str) -> None:
        for kind in tuple(self._kinds.values()):
            if not kind.resource.namespaced:
                continue
            for key in sorted(self._records(kind.resource)):
                if key.namespace == name and key in self._records(kind.resource):
                    self._delete(kind.resource, key)
        holds = any(key.namespace == name for records in self._objects.values() for key in records)
        if not holds:
            self._remove(NAMESPACES, Key("", name))

    def _orphan_dependents(self, uid: str) -> None:
        for kind, key, record in self._all_records():
            references = record.manifest["metadata"].get("ownerReferences", [])
            kept = [reference for reference in references if reference.get("uid") != uid]
            if len(kept) != len(references):
                meta = {name: v for name, v in record.manifest["metadata"].items() if name != "ownerReferences"}
                if kept:
                    meta["ownerReferences"] = kept
                self._commit("MODIFIED", kind.resource, key, {**record.manifest, "metadata": meta}, record.managed)

    def _all_records(self) -> Sequence[tuple[KindSpec, Key, Record]]:
        return [
            (kind, key, record)
            for where, kind in self._kinds.items()
            for key, record in tuple(self._objects[where].items())
        ]

    def collect_garbage(self) -> int:
        """Delete everything whose owners are all gone, until nothing is left to do; returns how many went."""
        collected = 0
        while True:
            alive = {record.uid for _, _, record in self._all_records()}
            doomed = [
                (kind.resource, key) for kind, key, record in self._all_records() if self._is_garbage(record, alive)
            ]
            if not doomed:
                break
            for resource, key in doomed:
                self._delete(resource, key)
            collected += len(doomed)
        for key, record in sorted(self._objects[("", "namespaces")].items()):
            if record.is_deleting:
                self._empty_namespace(key.name)
        return collected

    @staticmethod
    def _is_garbage(record: Record, alive: Iterable[str]) -> bool:
        references = record.manifest["metadata"].get("ownerReferences")
        return (
            bool(references)
            and not record.is_deleting
            and all(reference.get("uid") not in alive for reference in references)
        )

    # ------------------------------------------------------------------ storage

    def _commit(
        self, change: ChangeType, resource: Resource, key: Key, body: Object, managed: Mapping[Manager, Owned]
    ) -> Record:
        self._version += 1
        stored = Record({**body, "metadata": {**body["metadata"], "resourceVersion": str(self._version)}}, managed)
        records = self._objects[(resource.group, resource.plural)]
        before = records.get(key)
        records[key] = stored
        self._record_change(change, resource, key, before, stored)
        return stored

    def _record_change(
        self, change: ChangeType, resource: Resource, key: Key, before: Record | None, after: Record
    ) -> None:
        self._history[(resource.group, resource.plural)].append(
            Change(self._version, change, resource, key, before, after)
        )
        for listener in tuple(self._listeners):
            listener()
