"""Whatever valid Model is asked for, what is made of it is valid too, or is refused with a reason."""

from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from matrixinfer.api.v1alpha1.defaults import with_defaults
from matrixinfer.api.v1alpha1.model import Model
from matrixinfer.api.v1alpha1.validation import validate
from matrixinfer.engines.engine import EngineName
from matrixinfer.model_controller.desired import desired
from matrixinfer.model_controller.drift import has_drifted
from matrixinfer.model_controller.render.environment import RenderEnvironment
from matrixinfer.model_controller.render.errors import RenderError

ENVIRONMENT = RenderEnvironment(
    engine_images={EngineName.VLLM: "example/vllm:1", EngineName.SGLANG: "", EngineName.LLAMACPP: "example/llama:1"}
)
URIS = st.sampled_from(
    ["s3://a/b", "hf://org/name@main", "pvc://claim/x", "pvc://claim", "file:///x", "https://h/m.json"]
)
CACHES = st.sampled_from([None, "pvc://claim", "pvc://claim/a/b", "hostpath:///c", "pvc://../x", "pvc:///"])
CONFIGS = st.sampled_from(
    [
        None,
        {},
        {"max-model-len": 4096, "trust-remote-code": ""},
        {"port": 8001},
        {"port": "many"},
        {"served-model-name": ["a", "b"]},
        {"kv-transfer-config": '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'},
        {"kv-transfer-config": "{"},
        {"gpu-memory-utilization": 0.9, "nested": {"a": [1, None]}},
    ]
)
POLICIES = st.sampled_from([None, {"metrics": [{"metricName": "matrixinfer:num_requests_waiting", "targetValue": 4}]}])


@st.composite
def workers(draw: Any, split: bool) -> list[dict[str, Any]]:
    made = []
    for type_ in ("prefill", "decode") if split else ("server",):
        worker: dict[str, Any] = {"type": type_, "pods": draw(st.integers(0, 3)), "replicas": draw(st.integers(0, 2))}
        config = draw(CONFIGS)
        made.append(worker if config is None else {**worker, "config": config})
    return made


@st.composite
def backends(draw: Any, name: str) -> dict[str, Any]:
    type_ = draw(st.sampled_from(["vLLM", "vLLMDisaggregated", "SGLang", "SGLangDisaggregated", "LlamaCpp"]))
    least = draw(st.integers(0, 2))
    optional = {
        "cacheURI": draw(CACHES),
        "autoscalingPolicy": draw(POLICIES),
        "schedulerName": draw(st.sampled_from([None, "volcano"])),
        "include": draw(st.sampled_from([None, ["*.gguf"]])),
        "env": draw(st.sampled_from([None, [{"name": "ENDPOINT", "value": "http://s3"}]])),
        "loraAdapters": draw(st.sampled_from([None, [{"name": "legal", "artifactURL": "s3://a/l"}]])),
    }
    return {
        "name": name,
        "type": type_,
        "modelURI": draw(URIS),
        "minReplicas": least,
        "maxReplicas": max(1, least + draw(st.integers(0, 2))),
        "workers": draw(workers(type_.endswith("Disaggregated"))),
        **{key: value for key, value in optional.items() if value is not None},
    }


@settings(max_examples=300, deadline=None)
@given(data=st.data(), count=st.integers(1, 3))
def test_what_is_rendered_of_a_valid_model_is_valid(data: Any, count: int):
    manifest = with_defaults(
        {
            "apiVersion": "registry.matrixinfer.ai/v1alpha1",
            "kind": "Model",
            "metadata": {"name": "m", "namespace": "llm", "uid": "u"},
            "spec": {"backends": [data.draw(backends(name)) for name in ("a", "b", "c")[:count]]},
        }
    )
    assert validate(manifest) == []
    model = Model.model_validate(manifest)
    try:
        made = desired(model, {}, ENVIRONMENT)
    except RenderError as refusal:
        event(refusal.reason)
        return
    for child in made.children:
        assert [str(fault) for fault in validate(child.manifest)] == []
        assert not has_drifted(with_defaults(child.manifest), child.manifest), "what defaults fill in is no drift"
    assert desired(model, {}, ENVIRONMENT) == made
