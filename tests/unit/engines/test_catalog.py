"""Backend types, command lines and ports of every engine we know."""

import pytest

from matrixinfer.engines.catalog import BACKEND_TYPES, ENGINES, engine_for, engine_named, is_disaggregated
from matrixinfer.engines.engine import Command, Launch, LoraApi, Phase, Port
from matrixinfer.engines.errors import ConfigRefused, UnsupportedBackend
from matrixinfer.engines.vllm import kv_connector_of


def command(backend: str, config: object = None, **more: object) -> Command:
    return engine_for(backend).command(Launch("/models/m", "quickstart", config=config, **more))


@pytest.mark.parametrize("backend", BACKEND_TYPES)
def test_every_backend_type_has_an_engine_that_serves(backend: str) -> None:
    engine = engine_for(backend)
    assert engine_named(engine.name) is engine
    assert engine.health_path == "/health"
    assert engine.metrics_path == "/metrics"
    argv = command(backend).argv
    assert "/models/m" in argv
    assert argv[argv.index("--port") + 1] == "8000"
    assert "quickstart" in argv


@pytest.mark.parametrize("backend", ["MindIE", "MindIEDisaggregated", "vllm", ""])
def test_an_unknown_backend_is_refused_with_the_list_of_known_ones(backend: str) -> None:
    with pytest.raises(UnsupportedBackend, match="LlamaCpp"):
        engine_for(backend)


def test_an_unknown_engine_name_is_refused() -> None:
    with pytest.raises(UnsupportedBackend, match="SGLang"):
        engine_named("TGI")


def test_disaggregated_types_say_so() -> None:
    assert is_disaggregated("vLLMDisaggregated")
    assert not is_disaggregated("vLLM")


def test_vllm_on_one_node() -> None:
    assert command("vLLM", {"max_model_len": 2048}).argv == (
        *("vllm", "serve", "/models/m", "--served-model-name", "quickstart", "--host", "0.0.0.0", "--port", "8000"),
        *("--max-model-len", "2048"),
    )


def test_what_the_suite_sets_wins_and_the_config_is_told() -> None:
    made = command("vLLM", {"port": 9000, "host": "1.2.3.4", "served-model-name": "x"}, port=9000)
    assert made.ignored == ("host", "port", "served-model-name")
    assert made.argv.count("--port") == 1
    assert made.ports == (Port("http", 9000),)


def test_adapters_need_the_flag_and_the_permission_once() -> None:
    made = command("vLLM", {"enable-lora": True, "max-loras": 2}, lora=True)
    assert made.argv.count("--enable-lora") == 1
    assert {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "1"} in made.env
    assert "--enable-lora" in command("vLLM", lora=True).argv


def test_vllm_over_ray_starts_a_head_and_joins_workers_without_a_shell() -> None:
    entry = command("vLLM", {"tensor-parallel-size": 16}, nodes=2).argv
    assert entry[:2] == ("python3", "-c")
    assert entry[3:6] == ("6379", "vllm", "serve")
    assert entry[-2:] == ("--distributed-executor-backend", "ray")
    worker = command("vLLM", nodes=2, entry=False)
    assert worker.argv[:2] == ("python3", "-c")
    assert worker.argv[3:] == ("$(ENTRY_ADDRESS)", "6379", "1800")
    for program in (entry[2], worker.argv[2]):
        compile(program, "argv", "exec")
    assert worker.ports == ()


def test_vllm_own_nodes_when_the_config_asks_for_mp() -> None:
    config = {"distributed-executor-backend": "mp", "nnodes": 7}
    entry = command("vLLM", config, nodes=2)
    assert " ".join(entry.argv[-8:]) == "--nnodes 2 --node-rank 0 --master-addr $(ENTRY_ADDRESS) --master-port 29500"
    assert entry.ignored == ("nnodes",)
    worker = command("vLLM", config, nodes=2, entry=False).argv
    assert worker[-1] == "--headless"
    assert "$(WORKER_INDEX)" in worker


@pytest.mark.parametrize(("phase", "role"), [(Phase.PREFILL, "kv_producer"), (Phase.DECODE, "kv_consumer")])
@pytest.mark.parametrize("form", [{"kv_connector": "NixlConnector"}, '{"kv_connector":"NixlConnector"}'])
def test_a_disaggregated_phase_fills_in_its_kv_role(phase: Phase, role: str, form: object) -> None:
    made = command("vLLMDisaggregated", {"kv-transfer-config": form}, phase=phase)
    assert f'{{"kv_connector":"NixlConnector","kv_role":"{role}"}}' in made.argv
    assert Port("nixl", 5600) in made.ports
    assert made.env[0]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_a_contradicting_kv_role_is_refused() -> None:
    config = {"kv-transfer-config": {"kv_connector": "NixlConnector", "kv_role": "kv_consumer"}}
    with pytest.raises(ConfigRefused, match="a prefill worker needs kv_role kv_producer or kv_both"):
        command("vLLMDisaggregated", config, phase=Phase.PREFILL)


@pytest.mark.parametrize("broken", ["{", 3, [1]])
def test_a_transfer_config_that_is_no_object_is_refused(broken: object) -> None:
    with pytest.raises(ConfigRefused, match="kv-transfer-config"):
        command("vLLM", {"kv-transfer-config": broken})


def test_connector_types_are_those_of_a_model_server() -> None:
    assert kv_connector_of({"kv-transfer-config": {"kv_connector": "LMCacheConnectorV1"}}) == "lmcache"
    assert kv_connector_of({"kv_transfer_config": '{"kv_connector":"MooncakeConnector"}'}) == "mooncake"
    assert kv_connector_of({"kv-transfer-config": {"kv_connector": "Other"}}) is None
    assert kv_connector_of(None) is None


def test_sglang_always_exports_metrics_and_splits_by_mode() -> None:
    made = command("SGLangDisaggregated", {"enable-metrics": False, "tp": 2}, phase=Phase.PREFILL, nodes=2)
    argv = " ".join(made.argv)
    assert "--enable-metrics --tp 2 --disaggregation-mode prefill --nnodes 2 --node-rank 0" in argv
    assert made.ports == (Port("http", 8000), Port("bootstrap", 8998))
    worker = command("SGLang", nodes=2, entry=False).argv
    assert worker[-4:] == ("--node-rank", "$(WORKER_INDEX)", "--dist-init-addr", "$(ENTRY_ADDRESS):20000")


def test_llamacpp_is_one_node_one_phase_without_adapters() -> None:
    assert command("LlamaCpp", {"ctx-size": 8192, "alias": "x"}).argv[-3:] == ("--metrics", "--ctx-size", "8192")
    for wrong in ({"nodes": 2}, {"phase": Phase.DECODE}, {"lora": True}):
        with pytest.raises(ConfigRefused, match=r"llama\.cpp"):
            command("LlamaCpp", **wrong)


@pytest.mark.parametrize("config", [{"port": 8100}, {"port": "8100"}])
def test_a_port_in_the_config_is_read(config: object) -> None:
    assert engine_for("vLLM").port_of(config) == 8100
    assert engine_for("vLLM").port_of({}) == 8000


@pytest.mark.parametrize("port", [0, 65536, True, "http", None, 1.5])
def test_what_is_no_port_is_refused(port: object) -> None:
    with pytest.raises(ConfigRefused, match="use a number from 1 to 65535"):
        engine_for("vLLM").port_of({"port": port})


def test_the_served_name_of_a_config() -> None:
    assert engine_for("vLLM").served_name_of({"served_model_name": ["a", "b"]}) == "a"
    assert engine_for("LlamaCpp").served_name_of({"alias": "a"}) == "a"
    assert engine_for("vLLM").served_name_of({"alias": "a"}) is None


def test_loading_and_unloading_adapters_is_idempotent_through_the_api() -> None:
    api = ENGINES[engine_for("vLLM").name].lora
    assert isinstance(api, LoraApi)
    assert api.load("a", "/p").body == {"lora_name": "a", "lora_path": "/p"}
    assert api.load_succeeded(200, "")
    assert api.load_succeeded(400, "The lora adapter 'a' has already been loaded.")
    assert not api.load_succeeded(404, "No adapter found")
    assert api.unload_succeeded(404, "The lora adapter 'a' cannot be found.")
    assert not api.unload_succeeded(500, "boom")


def test_loaded_adapters_are_the_models_with_a_parent() -> None:
    models = {"data": [{"id": "base", "parent": None}, {"id": "a", "parent": "base"}, "junk", {"parent": "x"}]}
    assert LoraApi("", "").loaded(models) == {"a"}
    assert LoraApi("", "").loaded(["?"]) == frozenset()
