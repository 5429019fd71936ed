"""Keeps Secret, webhook configurations and listener in step.

Every replica runs the same pass, and any of them may do what is due: a Secret is created once or replaced at the
version that was read, so of two that try, one succeeds and the other reads again. What is already right is not
written, so a steady cluster sees no write of ours. A Secret that somebody else made (cert-manager) is served and
trusted, never changed.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from matrixinfer.kube.errors import AlreadyExists, Conflict, NotFound
from matrixinfer.kube.resource import MUTATING_WEBHOOKS, SECRETS, VALIDATING_WEBHOOKS, Key, Manifest, Resource
from matrixinfer.service.logging import get_logger
from matrixinfer.webhook.certificates import (
    Bundle,
    Due,
    Policy,
    due,
    expires,
    founded,
    issued,
    pruned,
    with_next_authority,
)

__all__ = ["FIELD_MANAGER", "ApiServer", "Keeper", "Kept"]

log = get_logger("keeper")

FIELD_MANAGER: Final = "matrixinfer-webhook"
_OWNER_LABEL: Final = "app.kubernetes.io/managed-by"
_INJECTED: Final = "cert-manager.io/inject-ca-from"
_ATTEMPTS: Final = 5
_CONFIGURATIONS: Final = (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS)


class ApiServer(Protocol):
    """The verbs that the keeper needs of a client."""

    async def get(self, resource: Resource, key: Key) -> dict[str, Any]:
        """Return one object; raises NotFound."""
        ...

    async def create(self, resource: Resource, manifest: Manifest, *, field_manager: str) -> dict[str, Any]:
        """Create; raises AlreadyExists."""
        ...

    async def replace(self, resource: Resource, manifest: Manifest, *, field_manager: str) -> dict[str, Any]:
        """PUT at the version in the manifest; raises Conflict."""
        ...

    async def apply(self, resource: Resource, manifest: Manifest, *, field_manager: str) -> dict[str, Any]:
        """Server-side apply."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """What to serve, and whether the API server trusts it."""

    bundle: Bundle
    trusted: bool


class Keeper:
    """Looks after one Secret and the two webhook configurations."""

    def __init__(
        self,
        api: ApiServer,
        *,
        policy: Policy,
        secret: Key,
        configuration: str,
        now: Callable[[], datetime],
    ) -> None:
        self._api = api
        self._policy = policy
        self._secret = secret
        self._configuration = Key("", configuration)
        self._now = now

    async def look_after(self) -> Kept:
        """Do what is due and return what to serve; raises KubeError when the API server cannot be asked."""
        for _ in range(_ATTEMPTS):
            secret = await self._read()
            bundle, is_ours = _bundle_in(secret)
            trusted = await self._publish(bundle.trust) if bundle is not None and bundle.trust else False
            if bundle is not None and not is_ours:
                return Kept(bundle, trusted)
            step = due(bundle, self._policy, self._now(), published=trusted)
            if step is Due.NOTHING and bundle is not None:
                return Kept(bundle, trusted)
            if await self._write(secret, self._after(step, bundle)):
                log.info("certificate_changed", step=str(step))
        raise Conflict(409, "Conflict", f"Secret {self._secret} keeps changing under our hands")

    async def _read(self) -> dict[str, Any] | None:
        try:
            return await self._api.get(SECRETS, self._secret)
        except NotFound:
            return None

    def _after(self, step: Due, bundle: Bundle | None) -> Bundle:
        now = self._now()
        if bundle is None or step is Due.FOUND:
            return founded(self._policy, now)
        match step:
            case Due.NEXT_AUTHORITY:
                return with_next_authority(bundle, self._policy, now)
            case Due.ISSUE:
                return issued(bundle, self._policy, now)
            case _:
                return pruned(bundle, now)

    async def _write(self, secret: dict[str, Any] | None, bundle: Bundle) -> bool:
        """Store the bundle unless somebody was quicker."""
        manifest = _secret_with(bundle, self._secret, secret)
        try:
            if secret is None:
                await self._api.create(SECRETS, manifest, field_manager=FIELD_MANAGER)
            else:
                await self._api.replace(SECRETS, manifest, field_manager=FIELD_MANAGER)
        except (AlreadyExists, Conflict, NotFound):
            return False
        return True

    async def _publish(self, trust: bytes) -> bool:
        """Have both configurations trust these authorities; False while one of them does not exist."""
        encoded = base64.b64encode(trust).decode()
        published = [await self._publish_in(resource, encoded) for resource in _CONFIGURATIONS]
        return all(published)

    async def _publish_in(self, resource: Resource, encoded: str) -> bool:
        try:
            found = await self._api.get(resource, self._configuration)
        except NotFound:
            return False
        if _INJECTED in (found["metadata"].get("annotations") or {}):
            return True
        webhooks = found.get("webhooks") or []
        if all(webhook["clientConfig"].get("caBundle") == encoded for webhook in webhooks):
            return True
        # Only names that exist: an entry made of nothing but a caBundle would be refused.
        manifest: dict[str, Any] = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": self._configuration.name},
            "webhooks": [{"name": webhook["name"], "clientConfig": {"caBundle": encoded}} for webhook in webhooks],
        }
        await self._api.apply(resource, manifest, field_manager=FIELD_MANAGER)
        log.info("authority_published", configuration=f"{resource.kind}/{self._configuration.name}")
        return True


def _bundle_in(secret: Mapping[str, Any] | None) -> tuple[Bundle | None, bool]:
    """The bundle in a Secret, None when there is none; and whether it is ours to change."""
    if secret is None:
        return None, True
    data = secret.get("data") or {}
    is_ours = (secret["metadata"].get("labels") or {}).get(_OWNER_LABEL) == FIELD_MANAGER
    try:
        parts = {name: base64.b64decode(data.get(name, "")) for name in ("ca.crt", "ca.key", "tls.crt", "tls.key")}
    except ValueError:
        return None, True
    if not parts["tls.crt"] or not parts["tls.key"]:
        return None, True
    return Bundle(parts["ca.crt"], parts["ca.key"], parts["tls.crt"], parts["tls.key"]), is_ours


def _secret_with(bundle: Bundle, key: Key, found: Mapping[str, Any] | None) -> dict[str, Any]:
    metadata: dict[str, Any] = dict(found["metadata"]) if found else {"name": key.name, "namespace": key.namespace}
    metadata.pop("managedFields", None)
    labels = {"app.kubernetes.io/part-of": "matrixinfer", _OWNER_LABEL: FIELD_MANAGER}
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
    metadata["annotations"] = {
        **(metadata.get("annotations") or {}),
        "matrixinfer.ai/expires": expires(bundle.certificate).isoformat(),
    }
    parts = {
        "ca.crt": bundle.trust,
        "ca.key": bundle.authority_key,
        "tls.crt": bundle.certificate,
        "tls.key": bundle.key,
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": found.get("type", "kubernetes.io/tls") if found else "kubernetes.io/tls",
        "data": {name: base64.b64encode(value).decode() for name, value in parts.items()},
    }
