"""A worker's free-form `config` becomes command-line flags, as an argv list.

Owns: the mapping from JSON to flags. Refuses: knowing what a flag means, except the few that we set ourselves.
Trap: nothing here is ever joined into one string, so no value can become another argument or a shell word; a value
that starts with a dash is attached with `=` so that the engine cannot take it for a flag. Several values cannot be
attached, so a list with such an item is refused.

| JSON value        | becomes                                                        |
|-------------------|----------------------------------------------------------------|
| true, ""          | `--key`                                                        |
| false             | `--no-key` where the engine has negated flags, else nothing    |
| null, []          | nothing                                                        |
| number, string    | `--key value`                                                  |
| list              | `--key v1 v2 …` (each item as above; objects as JSON)          |
| object            | `--key {"compact":"json"}`, its inner names kept as given      |

Keys are sorted, so equal configs give equal commands; `max_model_len` and `max-model-len` are one flag.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from matrixinfer.engines.errors import ConfigRefused

__all__ = ["Config", "Flags", "Json", "flag_name", "normalised", "to_flags"]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""A decoded JSON value."""

Config: TypeAlias = Mapping[str, Json]
"""A worker's `config`."""

_NEGATIVE: Final = re.compile(r"-\d+(\.\d+)?")
_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Flags:
    """`argv` in order; `ignored` are the keys of the config that lost against a flag that we set ourselves."""

    argv: tuple[str, ...]
    ignored: tuple[str, ...]


def flag_name(key: str) -> str:
    """The flag's name without leading dashes; underscores are dashes. Raises `ConfigRefused` for what is no flag."""
    name = key.removeprefix("--").replace("_", "-")
    if not _KEY.fullmatch(name):
        raise ConfigRefused(key, f"config key {key!r} is not a flag name; use letters, digits and dashes")
    return name


def normalised(config: Json) -> dict[str, Json]:
    """The config with its keys as flag names, sorted. Raises `ConfigRefused` unless it is an object without twins."""
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ConfigRefused("", f"config must be an object of engine flags, not {type(config).__name__}")
    named: dict[str, Json] = {}
    for key, value in config.items():
        name = flag_name(key)
        if name in named:
            raise ConfigRefused(key, f"config sets --{name} twice; keep one spelling")
        named[name] = value
    return dict(sorted(named.items()))


def to_flags(
    config: Json, *, reserved: Collection[str] = (), negatable: bool = False, bare_only: Collection[str] = ()
) -> Flags:
    """Render a config. `reserved` names are left out and reported; `bare_only` flags have no negated form."""
    argv: list[str] = []
    ignored: list[str] = []
    for name, value in normalised(config).items():
        if name in reserved:
            ignored.append(name)
        else:
            argv += _rendered(name, value, negated=negatable and name not in bare_only)
    return Flags(tuple(argv), tuple(ignored))


def _rendered(name: str, value: Json, *, negated: bool) -> list[str]:
    """The arguments of one member."""
    if value is None or value == []:
        return []
    if value is True or value == "":
        return [f"--{name}"]
    if value is False:
        return [f"--no-{name}"] if negated and not name.startswith(("no-", "disable-")) else []
    words = [_word(item) for item in value] if isinstance(value, list) else [_word(value)]
    if len(words) == 1 and words[0].startswith("-"):
        return [f"--{name}={words[0]}"]
    for word in words:
        if word.startswith("-") and not _NEGATIVE.fullmatch(word):
            raise ConfigRefused(name, f"config {name} lists {word!r}, which the engine would read as a flag")
    return [f"--{name}", *words]


def _word(value: Json) -> str:
    """One argument: text as it is, whole floats without a fraction, everything else as compact JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
