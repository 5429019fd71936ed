"""What the status of a ModelVersion should say of a download. Pure.

The downloader owns the conditions `Resolved` and `Available` and the figures of the content; every pod of a version
writes them with one field manager. The traps: what server-side apply does not carry it removes, so every status
carries all that is ours, taken over from what was seen where this process knows nothing better; and a version
that was verified on one cache stays `Available`, so a second pod that is still fetching has nothing to say.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from matrixinfer.api.conditions import ConditionStatus, is_true, set_condition
from matrixinfer.api.meta import Json
from matrixinfer.api.v1alpha1.modelversion import DownloadProgress, ModelVersionStatus
from matrixinfer.downloader.core.report import Report, percent, sentence
from matrixinfer.downloader.core.room import human_bytes

__all__ = ["AVAILABLE", "RESOLVED", "next_status"]

RESOLVED = "Resolved"
AVAILABLE = "Available"

_SHORT_DIGITS = 12


def next_status(status: ModelVersionStatus, generation: int, report: Report, now: datetime) -> dict[str, Json] | None:
    """Return everything of the status that is ours, or None when there is nothing to say."""
    if is_true(status.conditions, AVAILABLE) and status.digest:
        return None
    if not (report.resolved or report.cause):
        return None
    conditions = [c for c in status.conditions if c.type in (RESOLVED, AVAILABLE)]
    for kind, claim in (_resolved(report), _available(report)):
        conditions = set_condition(conditions, kind, claim.state, claim.reason, claim.message, generation, now)
    return ModelVersionStatus(conditions=tuple(conditions), **_figures(status, report)).to_manifest()


@dataclass(frozen=True, slots=True)
class _Claim:
    state: ConditionStatus
    reason: str
    message: str


def _resolved(report: Report) -> tuple[str, _Claim]:
    if not report.resolved:
        return RESOLVED, _Claim(ConditionStatus.FALSE, report.cause, report.message)
    revision = f" at revision {report.revision}" if report.revision else ""
    message = f"the source holds {report.file_count} files, {human_bytes(report.total_bytes)}{revision}"
    return RESOLVED, _Claim(ConditionStatus.TRUE, "Listed", message)


def _available(report: Report) -> tuple[str, _Claim]:
    if report.cause:
        return AVAILABLE, _Claim(ConditionStatus.FALSE, report.cause, _signed(report, report.message))
    if not report.digest:
        return AVAILABLE, _Claim(ConditionStatus.FALSE, "Downloading", _signed(report, sentence(report)))
    message = f"{report.file_count} files, {human_bytes(report.total_bytes)}, verified as {report.digest}"
    return AVAILABLE, _Claim(ConditionStatus.TRUE, "Verified", message)


def _signed(report: Report, message: str) -> str:
    # Several pods may fetch one version; the last to write is the one that speaks.
    return f"{report.pod}: {message}" if report.pod else message


def _figures(status: ModelVersionStatus, report: Report) -> dict[str, Any]:
    if not report.resolved:
        kept = status.model_dump(include={"resolved_revision", "total_bytes", "size", "file_count"}, exclude_none=True)
        return {key: value for key, value in kept.items() if key in status.model_fields_set}
    figures: dict[str, Any] = {
        "total_bytes": report.total_bytes,
        "size": human_bytes(report.total_bytes),
        "file_count": report.file_count,
        "progress": DownloadProgress(
            bytes=report.done_bytes, percent=percent(report), bytes_per_second=report.bytes_per_second
        ),
    }
    if report.revision:
        figures["resolved_revision"] = report.revision
    if report.digest:
        figures["digest"] = report.digest
        figures["short_digest"] = report.digest.removeprefix("sha256:")[:_SHORT_DIGITS]
    return figures
