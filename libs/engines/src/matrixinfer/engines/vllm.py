"""vLLM: command line, roles, several nodes, adapters.

Facts: the `vllm serve` command line of 0.10 to 0.32. Python's argparse there takes `--no-x` for every boolean of a
configuration class and either dashes or underscores; nested settings are JSON objects.

Several nodes. By default through Ray, because every release since 2024 can: the entry starts a Ray head and then
becomes `vllm serve`, the workers wait for it and join. A config with `distributed-executor-backend: mp` uses vLLM's own
`--nnodes/--node-rank/--master-addr` (newer releases only). Neither goes through a shell: Ray's steps are `python3 -c`
programs whose arguments stay arguments.
"""

import json
from typing import Final

from matrixinfer.api.names import ENV_ENTRY_ADDRESS, ENV_WORKER_INDEX
from matrixinfer.engines.config_flags import Json, normalised, to_flags
from matrixinfer.engines.engine import Command, Engine, EngineName, Launch, LoraApi, Phase, Port
from matrixinfer.engines.errors import ConfigRefused

__all__ = ["KV_CONNECTOR_TYPES", "VLLM", "kv_connector_of"]

MASTER_PORT: Final = 29500
RAY_PORT: Final = 6379
NIXL_PORT: Final = 5600

KV_CONNECTOR_TYPES: Final = {
    "MooncakeConnector": "mooncake",
    "MooncakeConnectorV1": "mooncake",
    "NixlConnector": "nixl",
    "LMCacheConnectorV1": "lmcache",
}
"""vLLM's connector classes → `ModelServer.spec.kvConnector.type`."""

_RESERVED: Final = frozenset({"host", "port", "model", "served-model-name"})
_NODE_FLAGS: Final = frozenset({"nnodes", "node-rank", "master-addr", "master-port", "headless"})
# Flags that exist only in their positive form: `--no-headless` would be an unknown argument.
_BARE_ONLY: Final = frozenset({"headless", "enable-log-outputs", "trust-request-chat-template"})
_KV_ROLES: Final = {Phase.PREFILL: ("kv_producer", "kv_both"), Phase.DECODE: ("kv_consumer", "kv_both")}

_RAY_HEAD: Final = (
    "import os,subprocess,sys;"
    "subprocess.run(['ray','start','--head','--port',sys.argv[1]],check=True);"
    "os.execvp(sys.argv[2],sys.argv[2:])"
)
"""Start the head in the background, then become the engine: process 1 is vLLM and gets the signals."""

_RAY_WORKER: Final = """\
import os, socket, sys, time
host, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
end = time.monotonic() + seconds
while True:
    try:
        socket.create_connection((host, port), 5).close()
        break
    except OSError:
        if time.monotonic() > end:
            raise
        time.sleep(1)
os.execvp("ray", ["ray", "start", "--address", f"{host}:{port}", "--block"])
"""
"""Wait until the head listens, then join it. Ray itself gives up after seconds, and a worker that ends before the entry
has fetched its weights would count as a failure of the whole group."""

_JOIN_SECONDS: Final = 1800


def kv_connector_of(config: Json) -> str | None:
    """The ModelServer connector type that a worker's `kv-transfer-config` means; `None` without one of ours."""
    name = _kv_transfer(config).get("kv_connector")
    return KV_CONNECTOR_TYPES.get(name) if isinstance(name, str) else None


def _kv_transfer(config: Json) -> dict[str, Json]:
    """`kv-transfer-config` as an object, however it was written (object or JSON text)."""
    value = normalised(config).get("kv-transfer-config")
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as exc:
            raise ConfigRefused("kv-transfer-config", f"config kv-transfer-config is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ConfigRefused("kv-transfer-config", "config kv-transfer-config must be an object")
    return value


def _with_role(config: Json, phase: Phase) -> dict[str, Json]:
    """The config with `kv_role` filled in for a disaggregated phase, or `ConfigRefused` when it contradicts it."""
    named = normalised(config)
    transfer = _kv_transfer(config)
    if phase not in _KV_ROLES or not transfer:
        return named
    allowed = _KV_ROLES[phase]
    role = transfer.get("kv_role", allowed[0])
    if role not in allowed:
        raise ConfigRefused(
            "kv-transfer-config", f"a {phase} worker needs kv_role {' or '.join(allowed)}, not {role!r}"
        )
    return named | {"kv-transfer-config": transfer | {"kv_role": role}}


def _command(launch: Launch) -> Command:
    """`vllm serve` for any phase, entry or worker, on one node or several."""
    config = _with_role(launch.config, launch.phase)
    spread = launch.nodes > 1
    native = config.get("distributed-executor-backend") == "mp"
    flags = to_flags(
        config,
        reserved=_RESERVED | (_NODE_FLAGS if spread else frozenset()),
        negatable=True,
        bare_only=_BARE_ONLY,
    )
    env, ports = _surroundings(launch, config)
    if spread and not native and not launch.entry:
        join = ("python3", "-c", _RAY_WORKER, f"$({ENV_ENTRY_ADDRESS})", str(RAY_PORT), str(_JOIN_SECONDS))
        return Command(join, env, (), flags.ignored)
    served = ("--served-model-name", launch.served_name, "--host", launch.host, "--port", str(launch.port))
    argv = ("vllm", "serve", launch.model_path, *served, *flags.argv)
    if launch.lora and config.get("enable-lora") is not True:
        argv += ("--enable-lora",)
    if spread and native:
        argv += _native_nodes(launch)
    elif spread:
        backend = () if "distributed-executor-backend" in config else ("--distributed-executor-backend", "ray")
        argv = ("python3", "-c", _RAY_HEAD, str(RAY_PORT), *argv, *backend)
    return Command(argv, env, ports if launch.entry else (), flags.ignored)


def _native_nodes(launch: Launch) -> tuple[str, ...]:
    """vLLM's own several-node flags; a worker serves no HTTP."""
    rank = "0" if launch.entry else f"$({ENV_WORKER_INDEX})"
    address = (f"$({ENV_ENTRY_ADDRESS})", "--master-port", str(MASTER_PORT))
    nodes = ("--nnodes", str(launch.nodes), "--node-rank", rank, "--master-addr", *address)
    return nodes if launch.entry else (*nodes, "--headless")


def _surroundings(launch: Launch, config: Json) -> tuple[tuple[dict[str, Json], ...], tuple[Port, ...]]:
    """Environment and ports that the flags imply."""
    env: list[dict[str, Json]] = []
    ports = [Port("http", launch.port)]
    if launch.lora:
        env.append({"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "1"})
    if kv_connector_of(config) == "nixl":
        own_address: Json = {"fieldRef": {"fieldPath": "status.podIP"}}
        env.append({"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "valueFrom": own_address})
        env.append({"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": str(NIXL_PORT)})
        ports.append(Port("nixl", NIXL_PORT))
    return tuple(env), tuple(ports)


VLLM: Final = Engine(
    name=EngineName.VLLM,
    command=_command,
    spellings={f"/v1/{name}": f"/{name}" for name in ("tokenize", "detokenize", "classify", "pooling")},
    adds_usage_event=True,
    lora=LoraApi("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    multi_node=True,
    phases=frozenset(Phase),
)
"""vLLM, aggregated or disaggregated."""
