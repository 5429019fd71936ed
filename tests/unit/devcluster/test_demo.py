"""The words of the demo."""

from collections.abc import Iterator
from typing import Any

import pytest

from matrixinfer.devcluster.demo import credentials_secret, demo, streamed_text, why_model_inactive
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.progress import Progress
from matrixinfer.devcluster.s3 import ObjectStore


def model(status: str, message: str = "", observed: int = 2) -> dict[str, Any]:
    condition = {"type": "Active", "status": status, "message": message, "observedGeneration": observed}
    return {"metadata": {"name": "quickstart", "generation": 2}, "status": {"conditions": [condition]}}


def lines(*events: str) -> Iterator[bytes]:
    return iter([f"{event}\n".encode() for event in events])


def test_an_active_model_is_waited_for_no_longer():
    assert why_model_inactive(model("True"), [], []) == ""


def test_an_old_answer_about_an_older_spec_does_not_count():
    assert why_model_inactive(model("True", "all serve", observed=1), [], []) == "all serve"


def test_a_model_that_nobody_has_seen_says_so():
    said = why_model_inactive({"metadata": {"generation": 1}}, [], [])
    assert said == "the model-controller has not seen it yet"


def test_downloads_and_pods_add_their_words():
    version = {"status": {"progress": {"bytes": 5, "percent": 40}}}
    pod = {"metadata": {}, "status": {"phase": "Pending"}}
    said = why_model_inactive(model("False", "0 of 1 groups are ready."), [version, {}], [pod])
    assert said == "0 of 1 groups are ready; downloaded 40 %; Pending"


def test_text_is_taken_from_the_stream_as_it_comes():
    stream = lines(
        ": comment",
        'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}',
        'data: {"choices":[{"delta":{"content":"Par"}}]}',
        "",
        'data: {"choices":[{"delta":{"content":"is"}}]}',
        'data: {"choices":[]}',
        "data: [DONE]",
    )
    assert list(streamed_text(stream)) == ["Par", "is"]


def test_the_secret_holds_the_servers_keys():
    secret = credentials_secret(ObjectStore("http://x", "a", "b"))
    assert secret["stringData"]["AWS_ACCESS_KEY_ID"] == "a"
    assert secret["metadata"]["name"] == "s3-credentials"


@pytest.mark.parametrize(("engine", "cluster"), [("gpu", ""), ("llamacpp", "minikube")])
def test_an_unknown_word_is_refused_before_anything_is_started(engine: str, cluster: str):
    with pytest.raises(ClusterError, match="unknown"):
        demo(engine, cluster, Progress(lambda _: None))
