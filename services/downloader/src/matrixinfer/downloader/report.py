"""Tells the API server how the download goes: the status of the ModelVersion it was started for.

A courtesy with strict limits: progress at most every two seconds, the outcome at once, every call with a deadline, and
no failure here ever fails the download. Each write is a server-side apply pinned to the version that was read, because
several pods write the same fields. The trap: what is not readable or gone for good is not asked for again.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from matrixinfer.api.v1alpha1.kinds import MODEL_VERSION
from matrixinfer.api.v1alpha1.modelversion import ModelVersionStatus
from matrixinfer.downloader.core.report import Recorded, Report
from matrixinfer.downloader.core.room import human_bytes
from matrixinfer.downloader.core.status import next_status
from matrixinfer.downloader.settings import DownloaderSettings
from matrixinfer.kube.client import Client
from matrixinfer.kube.errors import Conflict, Forbidden, Invalid, KubeError, NotFound, Unauthorized
from matrixinfer.kube.events import EventRecorder, ObjectReference
from matrixinfer.kube.plan import EventType, Note
from matrixinfer.kube.resource import Json, Key, Resource
from matrixinfer.service.clock import utcnow
from matrixinfer.service.logging import get_logger

__all__ = ["FIELD_MANAGER", "StatusReporter", "kubeconfig_of_token", "open_reporter"]

log = get_logger("report")

FIELD_MANAGER: Final = "matrixinfer-downloader"
"""Field manager and user agent of every write."""

_RESOURCE = Resource.of(MODEL_VERSION)
_CALL_SECONDS = 5.0
_CONFLICTS = 5
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)


class StatusReporter:
    """Reports one download to one ModelVersion."""

    def __init__(self, client: Client, key: Key, now: Callable[[], datetime]) -> None:
        self._client = client
        self._key = key
        self._now = now
        self._hopeless = False
        self._complained = False
        self._told: Report | None = None
        self._uid = ""
        self._events = EventRecorder(client, FIELD_MANAGER, deadline_seconds=_CALL_SECONDS)

    async def recorded(self) -> Recorded:
        """Return revision and digest that an earlier download of this version found."""
        try:
            status, _, _ = await self._read()
        except KubeError as exc:
            self._complain(exc)
            return Recorded()
        return Recorded(status.resolved_revision or "", status.digest or "")

    async def gone(self, names: Sequence[str]) -> Sequence[str]:
        """Return which of these versions of the namespace exist no more; nothing when that cannot be found out."""
        found: list[str] = []
        for name in names:
            try:
                await self._client.get(_RESOURCE, Key(self._key.namespace, name), deadline_seconds=_CALL_SECONDS)
            except NotFound:
                found.append(name)
            except KubeError as exc:
                log.warning("versions_unknown", reason=str(exc))
                return ()
        return found

    async def progress(self, report: Report) -> None:
        """Write where the download is, unless that is what was written last; the caller keeps the pace."""
        if report != self._told:
            await self._tell(report)

    async def outcome(self, report: Report, *, seconds: float) -> None:
        """Write how it ended, trying for at most so long."""
        try:
            async with asyncio.timeout(seconds):
                for pause in _PAUSES:
                    if await self._tell(report) or self._hopeless:
                        await self._events.flush()
                        return
                    await asyncio.sleep(pause)
        except TimeoutError:
            pass
        log.warning("outcome_not_reported", model_version=str(self._key), seconds=seconds)

    async def _tell(self, report: Report) -> bool:
        """True when the status says it, or need not."""
        if self._hopeless:
            return False
        try:
            for _ in range(_CONFLICTS):
                try:
                    await self._write(report)
                except Conflict:
                    continue
                self._told = report
                return True
        except KubeError as exc:
            self._complain(exc)
        return False

    async def _write(self, report: Report) -> None:
        status, generation, version = await self._read()
        wanted = next_status(status, generation, report, self._now())
        if wanted is None:
            return
        manifest: dict[str, Json] = {
            "apiVersion": _RESOURCE.api_version,
            "kind": _RESOURCE.kind,
            "metadata": {"name": self._key.name, "namespace": self._key.namespace, "resourceVersion": version},
            "status": wanted,
        }
        await self._client.apply(
            _RESOURCE, manifest, field_manager=FIELD_MANAGER, subresource="status", deadline_seconds=_CALL_SECONDS
        )
        if (note := _note(report)) is not None:
            self._events.record(ObjectReference(_RESOURCE, self._key, self._uid), note)

    async def _read(self) -> tuple[ModelVersionStatus, int, str]:
        found = await self._client.get(_RESOURCE, self._key, deadline_seconds=_CALL_SECONDS)
        metadata = found.get("metadata") or {}
        self._uid = str(metadata.get("uid") or "")
        status = ModelVersionStatus.model_validate(found.get("status") or {})
        return status, int(metadata.get("generation") or 0), str(metadata.get("resourceVersion") or "")

    def _complain(self, exc: KubeError) -> None:
        self._hopeless = isinstance(exc, NotFound | Forbidden | Unauthorized | Invalid)
        if not self._complained or self._hopeless:
            log.warning("report_failed", model_version=str(self._key), reason=str(exc), gives_up=self._hopeless)
        self._complained = True


@asynccontextmanager
async def open_reporter(
    settings: DownloaderSettings, model_version: str, namespace: str
) -> AsyncIterator[StatusReporter | None]:
    """The way to the ModelVersion, or None: without one, without credentials, or when they cannot be used."""
    async with AsyncExitStack() as stack:
        client = await _client(settings, stack)
        if client is None:
            yield None
            return
        yield StatusReporter(client, Key(namespace or _namespace(settings), model_version), utcnow)


async def _client(settings: DownloaderSettings, stack: AsyncExitStack) -> Client | None:
    try:
        kubeconfig = _kubeconfig(settings, stack)
        if kubeconfig is None:
            log.info("not_reporting", reason="no service account is mounted and no kubeconfig is given")
            return None
        return await stack.enter_async_context(await Client.connect(kubeconfig, user_agent=FIELD_MANAGER))
    except (KubeError, OSError) as exc:
        log.warning("not_reporting", reason=str(exc))
        return None


def _kubeconfig(settings: DownloaderSettings, stack: AsyncExitStack) -> Path | None:
    if settings.api_host and (settings.service_account_dir / "token").is_file():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="matrixinfer-")))
        made = folder / "kubeconfig"
        made.write_text(kubeconfig_of_token(settings.service_account_dir, settings.api_host, settings.api_port))
        return made
    return settings.kubeconfig


def _namespace(settings: DownloaderSettings) -> str:
    try:
        return (settings.service_account_dir / "namespace").read_text().strip()
    except OSError:
        return settings.namespace


def _note(report: Report) -> Note | None:
    """The event of an outcome; progress is none."""
    if report.cause:
        return Note(report.cause, f"{report.pod}: {report.message}", EventType.WARNING)
    if report.digest:
        size = human_bytes(report.total_bytes)
        given = f" ({human_bytes(report.peer_bytes)} from other pods)" if report.peer_bytes else ""
        message = f"{report.pod}: {report.file_count} files, {size}{given}, verified as {report.digest}"
        return Note("Downloaded", message)
    return None


def kubeconfig_of_token(folder: Path, host: str, port: str) -> str:
    """Return a kubeconfig that names a projected token and its CA by path: no credential is in the text itself."""
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    cluster = {"server": server, "certificate-authority": str(folder / "ca.crt")}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "pod",
            "contexts": [{"name": "pod", "context": {"cluster": "pod", "user": "pod"}}],
            "clusters": [{"name": "pod", "cluster": cluster}],
            "users": [{"name": "pod", "user": {"tokenFile": str(folder / "token")}}],
        }
    )
