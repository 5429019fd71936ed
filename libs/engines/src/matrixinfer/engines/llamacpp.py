"""llama.cpp: GGUF files, on a CPU as well as on a GPU.

Facts: `llama-server`. One node, one phase, no run-time adapters. `--model` is a file for the original program; the
shim in our own image also takes a directory that holds one .gguf file.
Trap: it closes the connection after each stream while announcing keep-alive, and /metrics has neither labels nor
histograms nor KV usage (in newer releases). A stream tells its counts in `timings` without being asked; asking for
`usage` moves them out of the event in which clients look for them.
"""

from typing import Final

from matrixinfer.engines.config_flags import to_flags
from matrixinfer.engines.engine import Command, Engine, EngineName, Launch, Phase, Port
from matrixinfer.engines.errors import ConfigRefused

__all__ = ["LLAMACPP"]

_RESERVED: Final = frozenset({"host", "port", "model", "alias", "served-model-name", "metrics"})


def _command(launch: Launch) -> Command:
    """`llama-server` for one model."""
    if launch.nodes > 1:
        raise ConfigRefused("", "llama.cpp runs on one node; set pods to 1")
    if launch.phase is not Phase.SERVER:
        raise ConfigRefused("", f"llama.cpp has no {launch.phase} workers; use worker type server")
    if launch.lora:
        raise ConfigRefused("", "llama.cpp takes no adapters at run time; remove loraAdapters")
    flags = to_flags(launch.config, reserved=_RESERVED, negatable=True)
    argv = ["llama-server", "--model", launch.model_path, "--alias", launch.served_name]
    argv += ("--host", launch.host, "--port", str(launch.port), "--metrics", *flags.argv)
    return Command(tuple(argv), (), (Port("http", launch.port),), flags.ignored)


LLAMACPP: Final = Engine(
    name=EngineName.LLAMACPP,
    command=_command,
    spellings={f"/v1/{name}": f"/{name}" for name in ("tokenize", "detokenize")},
    startup_seconds=600,
    served_name_flags=("served-model-name", "alias"),
)
"""llama.cpp's HTTP server."""
