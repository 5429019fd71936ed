"""A real vLLM serves a real model: what the simulator imitates is so. Skipped where vLLM is not installed."""

import http.client
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import yaml
from openai import OpenAI

from matrixinfer.devcluster import Node
from matrixinfer.devcluster.controlplane import wait_for
from matrixinfer.devcluster.demo import ENGINES, MODELS_BUCKET, credentials_secret, upload_files
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.progress import Progress
from matrixinfer.devcluster.s3 import ObjectStore
from matrixinfer.devcluster.suite import build_images, load_images, read
from matrixinfer.devcluster.vllm import vllm_model_files
from matrixinfer.engines.exposition import MetricReader
from matrixinfer.engines.metric_names import METRICS, Metric, MetricKind
from matrixinfer.engines.state import StateReader
from matrixinfer.testkit.traffic import Traffic, ask

ROOT = Path(__file__).parents[2]
ENGINE = ENGINES["vllm"]
NAME = "real-vllm"


def why_missing() -> str:
    try:
        vllm_model_files()
    except ClusterError as error:
        return str(error)
    return ""


pytestmark = [
    pytest.mark.skipif(bool(why_missing()), reason=why_missing()),
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("suite"),
]


@pytest.fixture
def served(node: Node, gateway: str, object_store: ObjectStore, namespace: str) -> Iterator[str]:
    """The quickstart's Model on vLLM, active and routed to; yields the name of its pod."""
    progress = Progress()
    load_images(node, build_images([ENGINE.image], progress), progress)
    upload_files(object_store, MODELS_BUCKET, ENGINE.folder, vllm_model_files())
    model = yaml.safe_load((ROOT / ENGINE.manifest).read_text())
    model["metadata"]["name"] = NAME
    node.apply([credentials_secret(object_store, namespace)])
    node.run_kubectl("apply", "-n", namespace, "-f", "-", stdin=orjson.dumps(model).decode())
    node.run_kubectl("wait", "model", NAME, "-n", namespace, "--for=condition=Active", "--timeout=300s", seconds=310)
    wait_for("the route", lambda: not ask(gateway, NAME, "hi", max_tokens=2).error, 60)
    pods = read(node, "pods", "-n", namespace, "-l", f"registry.matrixinfer.ai/model-name={NAME}")["items"]
    yield pods[0]["metadata"]["name"]
    node.run_kubectl("delete", "model", NAME, "-n", namespace, "--wait=true", seconds=120)


def scrape(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read()
    finally:
        connection.close()


def found(body: bytes) -> dict[Metric, float | None]:
    """Each metric that we know; of a histogram its count."""
    reading = MetricReader(list(METRICS)).read(body)
    values: dict[Metric, float | None] = {}
    for metric, spec in METRICS.items():
        if spec.kind is MetricKind.HISTOGRAM:
            histogram = reading.histogram(metric)
            values[metric] = histogram.count if histogram else None
        else:
            values[metric] = reading.number(metric)
    return values


def test_a_real_vllm_answers_and_every_metric_that_we_know_is_there(
    node: Node, gateway: str, namespace: str, served: str
):
    client = OpenAI(base_url=f"{gateway}/v1", api_key="unused", max_retries=0, timeout=60)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model=NAME, messages=question, max_tokens=32, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")
    port = node.publish_pod(served, namespace, 8000)
    with Traffic.flowing(gateway, NAME, connections=4) as traffic:
        traffic.wait_for_more(4)
        # The engine refreshes this gauge with each step, and streams of one length tend to end together.
        wait_for("a running request", lambda: bool(found(scrape(port))[Metric.RUNNING]), 30)
        seen = found(scrape(port))
    assert traffic.failures == []
    # vLLM counts queries and hits instead of the ratio, and tells the size of its memory in labels.
    said_otherwise = [Metric.PREFIX_HIT_RATIO, Metric.KV_TOKENS]
    assert [metric for metric, value in seen.items() if value is None] == said_otherwise
    state = StateReader().read(scrape(port))
    assert state.kv_tokens
    assert state.prefix_hits
    assert None not in (state.running, state.waiting, state.kv_usage, state.ttft_seconds, state.tpot_seconds)
    counted = (Metric.PROMPT_TOKENS, Metric.GENERATION_TOKENS, Metric.TTFT, Metric.ITL)
    assert [metric for metric in counted if not seen[metric]] == []
