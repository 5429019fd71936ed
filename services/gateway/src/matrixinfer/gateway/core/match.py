"""Does a rule apply to a request? Exact, prefix and regex matches over headers, path and model name.

Regular expressions are RE2: the syntax that manifests were always written in, and linear time whatever a tenant
writes or a client sends. The trap: an absent header counts as the empty string, so `.*` matches a request without it.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

# RE2 ships no type information; all uses are in this file.
import re2  # type: ignore[import-untyped]

from matrixinfer.gateway.core.types import Match, StringMatch

__all__ = ["Ask", "PatternError", "Predicate", "predicate", "string_test"]

_PATTERN_LIMIT = 1024
_PATTERN_MEMORY_BYTES = 1 << 20


class PatternError(ValueError):
    """A regular expression that RE2 refuses; the text says why."""


class Ask(msgspec.Struct, frozen=True):
    """What rules look at: the model asked for, the path without its query, headers by lower-case name."""

    model: str
    path: str
    headers: Mapping[str, str]


Predicate: TypeAlias = Callable[[Ask], bool]


def string_test(match: StringMatch) -> Callable[[str], bool]:
    """Compile one StringMatch. Raises PatternError."""
    if match.exact is not None:
        return match.exact.__eq__
    if match.prefix is not None:
        prefix = match.prefix
        return lambda value: value.startswith(prefix)
    if match.regex is not None:
        return _regex_test(match.regex)
    return _anything


def predicate(match: Match | None) -> Predicate:
    """Compile the conditions of one rule, all of which must hold; none at all always holds. Raises PatternError."""
    if match is None:
        return _anything
    headers = tuple((name, string_test(test)) for name, test in match.headers)
    uri = string_test(match.uri) if match.uri else _anything
    model = match.model.__eq__ if match.model is not None else _anything

    def holds(ask: Ask) -> bool:
        return uri(ask.path) and model(ask.model) and all(test(ask.headers.get(name, "")) for name, test in headers)

    return holds


def _anything(_value: object) -> bool:
    return True


def _regex_test(pattern: str) -> Callable[[str], bool]:
    if len(pattern) > _PATTERN_LIMIT:
        raise PatternError(f"the pattern has {len(pattern)} characters, at most {_PATTERN_LIMIT} are allowed")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _PATTERN_MEMORY_BYTES
    try:
        search = re2.compile(pattern, options).search
    except re2.error as exc:
        reason = exc.args[0]
        raise PatternError(reason.decode() if isinstance(reason, bytes) else str(reason)) from exc
    return lambda value: search(value) is not None
