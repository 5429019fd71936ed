"""Composition root of the webhook: the only place that knows concrete classes.

Order at start: certificate first, then the port, then readiness; the watches behind warnings never hold anything up.
At the end the port goes on answering for a while, because API servers learn of a pod's end only after it began.
"""

import asyncio
from typing import Final

from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.errors import KubeError
from matrixinfer.kube.resource import Key
from matrixinfer.service.clock import utcnow
from matrixinfer.service.lifecycle import Lifecycle
from matrixinfer.service.logging import get_logger
from matrixinfer.service.tls import CertificateError, ReloadingContext
from matrixinfer.webhook import metrics
from matrixinfer.webhook.keeper import FIELD_MANAGER, Keeper, Kept
from matrixinfer.webhook.references import References
from matrixinfer.webhook.review import defaulted, validated
from matrixinfer.webhook.server import Hooks, serving
from matrixinfer.webhook.settings import WebhookSettings

__all__ = ["main"]

log = get_logger("app")

_RETRY_SECONDS: Final = 2.0


class _Readiness:
    """What `/readyz` asks for."""

    def __init__(self) -> None:
        self.serving = False
        self.trusted = False

    def certificate(self) -> bool | str:
        return self.serving or "no certificate is served yet"

    def trust(self) -> bool | str:
        return self.trusted or "the webhook configurations do not carry our authority yet"


async def main(lifecycle: Lifecycle, settings: WebhookSettings) -> None:
    """Serve until the process is told to stop."""
    ready = _Readiness()
    lifecycle.ready_when("certificate", ready.certificate)
    lifecycle.ready_when("trust", ready.trust)
    async with await Client.connect(settings.kubeconfig, user_agent=FIELD_MANAGER) as client:
        cache = Cache(client)
        references = References.declared(cache)
        keeper = Keeper(
            client,
            policy=settings.policy,
            secret=Key(settings.namespace, settings.secret_name),
            configuration=settings.configuration_name,
            now=utcnow,
        )
        first = await _first(keeper, lifecycle)
        if first is None:
            return
        tls = ReloadingContext(first.bundle.certificate, first.bundle.key)
        hooks = Hooks(mutate=defaulted, validate=lambda question: validated(question, references.exist))
        async with serving(hooks, tls, settings.host, settings.port) as port, asyncio.TaskGroup() as tasks:
            ready.serving = True
            log.info("listening", port=port)
            background = [
                tasks.create_task(cache.run(), name="references"),
                tasks.create_task(_keep(keeper, tls, ready, settings.check_seconds, first), name="keeper"),
            ]
            await lifecycle.stopping.wait()
            await asyncio.sleep(min(settings.linger_seconds, settings.drain_seconds / 2))
            for task in background:
                task.cancel()


async def _first(keeper: Keeper, lifecycle: Lifecycle) -> Kept | None:
    """Return the first certificate; None when the process was told to stop before there was one."""
    while not lifecycle.stopping.is_set():
        kept = await _attempt(keeper)
        if kept is not None:
            return kept
        await lifecycle.stops_within(_RETRY_SECONDS)
    return None


async def _attempt(keeper: Keeper) -> Kept | None:
    """One pass; None when it failed, which the next one may mend. The only layer that retries."""
    try:
        return await keeper.look_after()
    except KubeError as exc:
        log.warning("certificate_pass_failed", reason=str(exc))
        return None


async def _keep(
    keeper: Keeper, tls: ReloadingContext, ready: _Readiness, every_seconds: float, kept: Kept | None
) -> None:
    """Look after the certificate for ever, and serve the newest from the next handshake on."""
    served = b""
    while True:
        if kept is not None:
            if kept.bundle.certificate != served:
                served = kept.bundle.certificate
                _serve(tls, kept)
            ready.trusted = ready.trusted or kept.trusted
            metrics.TRUSTED.set(kept.trusted)
        settled = kept is not None and kept.trusted
        await asyncio.sleep(every_seconds if settled else min(_RETRY_SECONDS, every_seconds))
        kept = await _attempt(keeper)


def _serve(tls: ReloadingContext, kept: Kept) -> None:
    try:
        tls.replace(kept.bundle.certificate, kept.bundle.key)
    except CertificateError as exc:
        log.error("certificate_not_usable", reason=str(exc))
        return
    metrics.CERTIFICATE_EXPIRY.set(tls.not_after.timestamp())
    log.info("certificate_served", not_after=tls.not_after.isoformat())
