"""Rules about values that several kinds hold: durations, percentages, labels, images, match expressions."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from matrixinfer.api import durations, intstr
from matrixinfer.api.errors import FieldError
from matrixinfer.api.v1alpha1.modelroute import ModelMatch, StringMatch
from matrixinfer.api.v1alpha1.structural import joined

__all__ = [
    "LONGEST_LABEL",
    "check_containers",
    "check_count_or_percent",
    "check_duration",
    "check_labels",
    "check_match",
    "notice_match",
]

LONGEST_LABEL: Final = 63
"""Characters that a label value, a pod's host name and a Service's name may have."""

_HALF_HOUR: Final = timedelta(minutes=30)
_LABEL_NAME: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)")
_LABEL_PREFIX: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_ALL: Final = 100


def check_duration(value: timedelta | None, path: str, most: timedelta | None = _HALF_HOUR) -> Iterator[FieldError]:
    """Refuse a negative duration, and one above `most`."""
    if value is None:
        return
    if value < timedelta(0):
        yield FieldError(path, f"cannot be negative, but is {durations.format(value)}", "write for example 30s")
    elif most is not None and value > most:
        yield FieldError(
            path,
            f"cannot exceed {durations.format(most)}, but is {durations.format(value)}",
            f"write a duration from 0s to {durations.format(most)}",
        )


def check_count_or_percent(value: int | str, path: str) -> Iterator[FieldError]:
    """Refuse a negative count, a malformed percentage, and one above 100%."""
    if isinstance(value, int):
        if value < 0:
            yield FieldError(
                path, f"cannot be negative, but is {value}", "write a count of at least 0, or a percentage"
            )
        return
    if not re.fullmatch(intstr.PERCENT_PATTERN.removesuffix("$"), value):
        yield FieldError(path, f"cannot be {value!r}", "write a count such as 1, or a percentage such as 25%")
    elif int(value.removesuffix("%")) > _ALL:
        yield FieldError(path, f"cannot be more than 100%, but is {value}", "write a percentage from 0% to 100%")


def check_labels(labels: Mapping[str, str], path: str) -> Iterator[FieldError]:
    """Refuse labels that no pod could ever have."""
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        if (
            len(name) > LONGEST_LABEL
            or not _LABEL_NAME.fullmatch(name)
            or (slash and not _LABEL_PREFIX.fullmatch(prefix))
        ):
            yield FieldError(joined(path, key), "is not a label key", "write for example app or example.org/app")
        if value and (len(value) > LONGEST_LABEL or not _LABEL_NAME.fullmatch(value)):
            yield FieldError(
                joined(path, key),
                f"{value!r} is not a label value",
                "use at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
            )


def check_containers(spec: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """Refuse a pod without containers, and images that no registry could serve."""
    containers: Sequence[Mapping[str, Any]] = spec.get("containers", ())
    if not containers:
        yield FieldError(
            joined(path, "containers"), "must have at least 1 element, not 0", "add the engine's container"
        )
    for member in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(member, ())):
            image = container.get("image", "")
            if image and image != "".join(image.split()):
                yield FieldError(
                    f"{path}.{member}[{index}].image",
                    f"{image!r} is not an image reference: it has spaces",
                    "write for example registry/name:tag",
                )


def check_match(match: ModelMatch | None, path: str) -> Iterator[FieldError]:
    """Refuse expressions that are not regular expressions: they would never match."""
    for place, text in _texts(match, path):
        if text.regex is None:
            continue
        try:
            re.compile(text.regex)
        except (re.error, OverflowError, RecursionError) as fault:
            yield FieldError(
                f"{place}.regex", f"{text.regex!r} is not a regular expression: {fault}", "correct the expression"
            )


def notice_match(match: ModelMatch | None, path: str) -> Iterator[FieldError]:
    """Tell of texts that have more than one of exact, prefix and regex: only the first is looked at."""
    for place, text in _texts(match, path):
        given = [name for name in ("exact", "prefix", "regex") if getattr(text, name) is not None]
        if len(given) > 1:
            yield FieldError(
                place, f"has {' and '.join(given)}, of which only {given[0]} is looked at", "keep one of them"
            )


def _texts(match: ModelMatch | None, path: str) -> Iterator[tuple[str, StringMatch]]:
    if match is None:
        return
    for name, text in match.headers.items():
        yield joined(f"{path}.headers", name), text
    if match.uri is not None:
        yield f"{path}.uri", match.uri
