"""What one simulated engine is told at start: `vllm serve` flags, plus the pace, which no real engine has a flag for.

Owns: the values and their reading from argv and environment. Unknown `vllm serve` flags are accepted and ignored,
because the point is to start with the very command line that a real engine gets.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

__all__ = ["ENV_PREFIX", "SimConfig", "UsageError", "config_from"]

ENV_PREFIX: Final = "MATRIXINFER_ENGINESIM_"
"""`MATRIXINFER_ENGINESIM_DECODE_TOKENS_PER_SECOND=50` and so on: any pace field, upper case."""


class UsageError(ValueError):
    """The command line or the environment cannot be understood."""


@dataclass(frozen=True, slots=True)
class SimConfig:
    """One engine. A rate of 0 means: as fast as the machine can."""

    model: str = "sim"
    served_names: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    max_model_len: int = 8192
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    block_size: int = 16
    num_blocks: int = 8192
    prefix_caching: bool = True
    lora: bool = False
    max_loras: int = 4
    adapters: tuple[tuple[str, str], ...] = ()
    prompt_tokens_details: bool = False
    shutdown_seconds: float = 30.0
    prefill_tokens_per_second: float = 0.0
    decode_tokens_per_second: float = 0.0
    startup_seconds: float = 0.0
    engine_id: str = ""
    faults: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Model names that requests may use; the first is the one in answers."""
        return self.served_names or (self.model,)


_PACE: Final = ("prefill_tokens_per_second", "decode_tokens_per_second", "startup_seconds")
_TEXT: Final = ("engine_id", "faults")


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that the caller decides."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _parser() -> argparse.ArgumentParser:
    default = SimConfig()
    parser = _Parser(prog="vllm", allow_abbrev=False, add_help=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--model", dest="model_flag")
    parser.add_argument("--served-model-name", nargs="+", default=[])
    parser.add_argument("--host", default=default.host)
    parser.add_argument("--port", type=int, default=default.port)
    parser.add_argument("--max-model-len", type=_count, default=default.max_model_len)
    parser.add_argument("--max-num-seqs", type=_count, default=default.max_num_seqs)
    parser.add_argument("--max-num-batched-tokens", type=_count, default=default.max_num_batched_tokens)
    parser.add_argument("--block-size", type=_count, default=default.block_size)
    parser.add_argument("--num-gpu-blocks-override", type=_count, default=default.num_blocks)
    parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--enable-lora", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--max-loras", type=_count, default=default.max_loras)
    parser.add_argument("--lora-modules", nargs="+", default=[])
    parser.add_argument("--enable-prompt-tokens-details", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--shutdown-timeout", type=float, default=default.shutdown_seconds)
    for name in _PACE:
        parser.add_argument(f"--sim-{name.replace('_', '-')}", dest=name, type=_rate)
    for name in _TEXT:
        parser.add_argument(f"--sim-{name.replace('_', '-')}", dest=name)
    return parser


def config_from(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> SimConfig:
    """Read `serve MODEL --flags…`; pace flags (`--sim-…`) win over the environment. Raises `UsageError`."""
    args, _ = _parser().parse_known_args([_dashed(word) for word in argv])
    model = args.model or args.model_flag
    if not model:
        raise UsageError("say which model to serve: serve MODEL")
    if model.startswith("/") and not Path(model).exists():
        raise UsageError(f"the model directory {model} does not exist")
    return SimConfig(
        model=model,
        served_names=tuple(args.served_model_name),
        host=args.host,
        port=args.port,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        block_size=args.block_size,
        num_blocks=args.num_gpu_blocks_override,
        prefix_caching=args.enable_prefix_caching,
        lora=args.enable_lora,
        max_loras=args.max_loras,
        adapters=tuple(map(_adapter, args.lora_modules)),
        prompt_tokens_details=args.enable_prompt_tokens_details,
        shutdown_seconds=args.shutdown_timeout,
        prefill_tokens_per_second=_pace(args, environ, "prefill_tokens_per_second"),
        decode_tokens_per_second=_pace(args, environ, "decode_tokens_per_second"),
        startup_seconds=_pace(args, environ, "startup_seconds"),
        engine_id=_text(args, environ, "engine_id") or environ.get("POD_NAME") or environ.get("HOSTNAME", ""),
        faults=_text(args, environ, "faults"),
    )


def _pace(args: argparse.Namespace, environ: Mapping[str, str], name: str) -> float:
    """A pace field: flag, else environment, else no pause at all."""
    flag: float | None = getattr(args, name)
    if flag is not None:
        return flag
    try:
        return _rate(environ.get(ENV_PREFIX + name.upper()) or "0")
    except argparse.ArgumentTypeError as exc:
        raise UsageError(f"{ENV_PREFIX}{name.upper()}: {exc}") from exc


def _text(args: argparse.Namespace, environ: Mapping[str, str], name: str) -> str:
    """A text field: flag, else environment, else empty."""
    return getattr(args, name) or environ.get(ENV_PREFIX + name.upper(), "")


def _dashed(word: str) -> str:
    """vLLM takes `--max_model_len` for `--max-model-len`; values stay as they are."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _adapter(text: str) -> tuple[str, str]:
    """One `--lora-modules` item: `name=path` or a JSON object with name and path."""
    if text.startswith("{"):
        value = json.loads(text)
        return str(value["name"]), str(value["path"])
    name, equals, path = text.partition("=")
    if not equals:
        raise UsageError(f"--lora-modules: {text!r} is not name=path")
    return name, path


def _count(text: str) -> int:
    """A positive whole number; `4k` and `1.5K` as vLLM reads them (k is 1000, K is 1024)."""
    factor = {"k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}.get(text[-1:], 0)
    try:
        value = int(float(text[:-1]) * factor) if factor else int(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from exc
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not positive")
    return value


def _rate(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from exc
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number of at least 0")
    return value
