"""SGLang: command line, roles, several nodes, adapters.

Facts: `python3 -m sglang.launch_server`. Its booleans have no negated form, flags are spelt with dashes only, and
/metrics is absent unless `--enable-metrics` is given, so it always is.
"""

from typing import Final

from matrixinfer.api.names import ENV_ENTRY_ADDRESS, ENV_WORKER_INDEX
from matrixinfer.engines.config_flags import normalised, to_flags
from matrixinfer.engines.engine import Command, Engine, EngineName, Launch, LoraApi, Phase, Port
from matrixinfer.engines.errors import ConfigRefused

__all__ = ["SGLANG"]

DIST_INIT_PORT: Final = 20000
BOOTSTRAP_PORT: Final = 8998

_RESERVED: Final = frozenset({"host", "port", "model", "model-path", "served-model-name", "enable-metrics"})
_NODE_FLAGS: Final = frozenset({"nnodes", "node-rank", "dist-init-addr"})


def _command(launch: Launch) -> Command:
    """`sglang.launch_server` for any phase, entry or worker, on one node or several."""
    config = normalised(launch.config)
    spread = launch.nodes > 1
    disaggregated = launch.phase is not Phase.SERVER
    reserved = _RESERVED | (_NODE_FLAGS if spread else set()) | ({"disaggregation-mode"} if disaggregated else set())
    flags = to_flags(config, reserved=reserved)
    argv = ["python3", "-m", "sglang.launch_server", "--model-path", launch.model_path]
    argv += ("--served-model-name", launch.served_name, "--host", launch.host, "--port", str(launch.port))
    argv += ("--enable-metrics", *flags.argv)
    ports = [Port("http", launch.port)]
    if launch.lora and config.get("enable-lora") is not True:
        argv += ("--enable-lora",)
    if disaggregated:
        argv += ("--disaggregation-mode", str(launch.phase))
    if launch.phase is Phase.PREFILL:
        ports.append(Port("bootstrap", _bootstrap_port(config.get("disaggregation-bootstrap-port", BOOTSTRAP_PORT))))
    if spread:
        rank = "0" if launch.entry else f"$({ENV_WORKER_INDEX})"
        argv += ("--nnodes", str(launch.nodes), "--node-rank", rank)
        argv += ("--dist-init-addr", f"$({ENV_ENTRY_ADDRESS}):{DIST_INIT_PORT}")
    return Command(tuple(argv), (), tuple(ports) if launch.entry else (), flags.ignored)


def _bootstrap_port(value: object) -> int:
    """The port where decode finds prefill."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535:
        return value
    raise ConfigRefused(
        "disaggregation-bootstrap-port",
        f"config disaggregation-bootstrap-port {value!r} is not a port; use a number from 1 to 65535",
    )


SGLANG: Final = Engine(
    name=EngineName.SGLANG,
    command=_command,
    spellings={f"/{name}": f"/v1/{name}" for name in ("rerank", "score")},
    adds_usage_event=True,
    lora=LoraApi("/load_lora_adapter", "/unload_lora_adapter"),
    multi_node=True,
    phases=frozenset(Phase),
)
"""SGLang, aggregated or disaggregated."""
