#!/opt/matrixinfer/bin/python
"""`llama-server` over the xllamacpp wheel: the flags of llama.cpp's own server that a Model may use.

Owns: reading the command line, finding the one .gguf below a directory, ending in order. Refuses: everything HTTP,
which is llama.cpp's. It waits for nothing: a model that is not there is an error at once.
Trap: xllamacpp stops its server with the process and says nothing about streams that still run. So on SIGTERM this
program asks its own /metrics until nothing runs (at most --shutdown-timeout seconds) and only then ends.
"""

import argparse
import http.client
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_LATER_PART = re.compile(r"-(?!00001-of-)\d{5}-of-\d{5}\.gguf$")
_BUSY = re.compile(rb"^llamacpp:requests_(?:processing|deferred) ([0-9.]+)", re.MULTILINE)


class NoModel(ValueError):
    """The path holds no single GGUF model."""


def find_gguf(path: Path) -> Path:
    """The model file: `path` itself, or the only one below it; of a model in parts, the first part."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise NoModel(f"the model {path} does not exist")
    found = [p for p in sorted(path.rglob("*.gguf")) if not p.name.startswith(".") and not _LATER_PART.search(p.name)]
    models = [p for p in found if not p.name.lower().startswith("mmproj")]
    if len(models) != 1:
        names = ", ".join(str(p.relative_to(path)) for p in models) or "none"
        raise NoModel(f"the directory {path} must hold exactly one .gguf model; it holds: {names}")
    return models[0]


def usable_threads(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Half the processors that this process may use, at least one.

    Threads of llama.cpp wait for each other by spinning: one too many, on a machine that does anything else, makes
    answers ten times slower. A container's CPU limit counts as so many processors.
    """
    cores = float(len(os.sched_getaffinity(0)))
    for quota, period in (_words(cgroup / "cpu.max"), _quota_v1(cgroup / "cpu")):
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, int(quota) / int(period))
    return max(1, int(cores / 2))


def _words(path: Path) -> tuple[str, str]:
    """The two words of a cgroup v2 file: quota (or `max`) and period."""
    try:
        quota, period = path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return "", ""
    return quota, period


def _quota_v1(folder: Path) -> tuple[str, str]:
    """Quota (or -1) and period as cgroup v1 gives them."""
    try:
        quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
        return quota, (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
    except OSError:
        return "", ""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; underscores in flag names count as dashes."""
    parser = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
    parser.add_argument("-m", "--model", type=Path, required=True, help="a .gguf file, or a directory with one in it")
    parser.add_argument("-a", "--alias", default="", help="model name in answers")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("-c", "--ctx-size", type=int, default=8192, help="tokens of context over all slots")
    parser.add_argument("-np", "--parallel", type=int, default=4, help="requests computed at once")
    parser.add_argument("-t", "--threads", type=int, default=usable_threads())
    parser.add_argument("-b", "--batch-size", type=int)
    parser.add_argument("-ub", "--ubatch-size", type=int)
    parser.add_argument("-n", "--n-predict", type=int)
    parser.add_argument("-ngl", "--n-gpu-layers", type=int)
    parser.add_argument("--embeddings", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--warmup", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--metrics", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--shutdown-timeout", type=float, default=25.0, help="seconds that running streams get")
    return parser.parse_args([_dashed(word) for word in argv])


def _dashed(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def serve(options: argparse.Namespace, gguf: Path) -> None:
    """Serve until SIGTERM or SIGINT, let what runs finish, return."""
    # Imported here so that a wrong command line is told without loading the engine.
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.model_alias = {options.alias or gguf.stem}
    params.hostnames, params.port = [options.host], options.port
    params.endpoint_metrics, params.warmup, params.embedding = True, options.warmup, options.embeddings
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = options.ctx_size, options.parallel, options.threads
    optional = {
        "n_batch": options.batch_size,
        "n_ubatch": options.ubatch_size,
        "n_predict": options.n_predict,
        "n_gpu_layers": options.n_gpu_layers,
    }
    for name, value in optional.items():
        if value is not None:
            setattr(params, name, value)
    signals = {signal.SIGTERM, signal.SIGINT}
    # Blocked before the engine starts its threads, which inherit the mask: the signal reaches sigwait only.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    server = xllamacpp.Server(params)
    sys.stdout.write(f"serving {gguf.name} at {server.listening_address}\n")
    sys.stdout.flush()
    signal.sigwait(signals)
    drain(_local(options.host), options.port, options.shutdown_timeout)


def drain(host: str, port: int, seconds: float) -> bool:
    """Wait until no request runs; False when the time was up first.

    Only a refused connection means that the engine is gone: a busy one may well take long to answer.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            body = _metrics(host, port)
        except ConnectionRefusedError:
            return True
        except (OSError, http.client.HTTPException):
            continue
        if not any(float(number) for number in _BUSY.findall(body)):
            return True
        time.sleep(0.1)
    return False


def _metrics(host: str, port: int) -> bytes:
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read(1 << 20)
    finally:
        connection.close()


def _local(host: str) -> str:
    """An address at which this process reaches itself."""
    # A key to look up, not an address to bind.
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def main(argv: Sequence[str] | None = None) -> None:
    """The console command; exit status 2 when the model cannot be found."""
    options = parse(sys.argv[1:] if argv is None else argv)
    try:
        gguf = find_gguf(options.model)
    except NoModel as exc:
        sys.stderr.write(f"llama-server: {exc}\n")
        sys.exit(2)
    serve(options, gguf)


if __name__ == "__main__":
    main()
