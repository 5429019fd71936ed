"""What the page of each engine says of its load, under every name that it ever had."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.engines.glance import Glance
from matrixinfer.engines.state import STATE_METRICS, EngineState, engine_state

VLLM_NEW = b"""\
# HELP python_info Python platform information
python_info{implementation="CPython",version="3.12.11"} 1.0
# HELP vllm:num_requests_running Requests in the batch.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="1",model_name="m"} 2.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_queries_total{engine="1",model_name="m"} 300.0
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7e+09
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 50.0
vllm:prefix_cache_hits_total{engine="1",model_name="m"} 150.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="1000"} 1.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="1",num_gpu_blocks="1000"} 1.0
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""} 1.7e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters="c"} 1.8e+09
"""
VLLM_OLD = b"""\
vllm:num_requests_running{model_name="m"} 3.0
vllm:num_requests_swapped{model_name="m"} 0.0
vllm:num_requests_waiting{model_name="m"} 1.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.5
vllm:cpu_cache_usage_perc{model_name="m"} 0.0
vllm:gpu_prefix_cache_hit_rate{model_name="m"} -1.0
"""
VLLM_BETWEEN = b"""\
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:gpu_prefix_cache_queries_total{engine="0",model_name="m"} 10.0
vllm:gpu_prefix_cache_hits_total{engine="0",model_name="m"} 5.0
"""
SGLANG_NEW = b"""\
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 2.0
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="m",pp_rank="0",tp_rank="1"} 2.0
sglang:num_running_reqs{dp_rank="1",engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 5.0
sglang:num_running_reqs_offline_batch{dp_rank="0",model_name="m"} 7.0
sglang:token_usage{dp_rank="0",model_name="m",tp_rank="0"} 0.1
sglang:token_usage{dp_rank="1",model_name="m",tp_rank="0"} 0.4
sglang:num_queue_reqs{dp_rank="0",model_name="m",tp_rank="0"} 0.0
sglang:num_queue_reqs{dp_rank="1",model_name="m",tp_rank="0"} 6.0
sglang:cache_hit_rate{dp_rank="0",model_name="m",tp_rank="0"} 0.2
sglang:cache_hit_rate{dp_rank="1",model_name="m",tp_rank="0"} 0.6
sglang:max_total_num_tokens{dp_rank="0",model_name="m",tp_rank="0"} 5000.0
sglang:max_total_num_tokens{dp_rank="1",model_name="m",tp_rank="0"} 5000.0
"""
SGLANG_OLD = b"""\
sglang:max_total_num_tokens{name="m"} 5000.0
sglang:num_requests_running{name="m"} 7.0
sglang:num_requests_waiting{name="m"} 6.0
sglang:token_usage{name="m"} 0.4
sglang:cache_hit_rate{name="m"} 0.4
"""
LLAMACPP_NEW = b"""\
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 6886
llamacpp:predicted_tokens_seconds nan
llamacpp:n_busy_slots_per_decode 1.2
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
llamacpp:requests_deferred 46
"""
LLAMACPP_OLD = b"""\
llamacpp:kv_cache_usage_ratio 0.125
llamacpp:kv_cache_tokens 512
llamacpp:requests_processing 4
llamacpp:requests_deferred 46
"""


def state_of(page: bytes) -> EngineState:
    return engine_state(Glance(STATE_METRICS).read(page))


@pytest.mark.parametrize(
    ("page", "state"),
    [
        (VLLM_NEW, EngineState(7, 2, 0.75, 32000, 400, 200, None, frozenset({"a", "b", "c"}))),
        (VLLM_OLD, EngineState(3, 1, 0.5)),
        (VLLM_BETWEEN, EngineState(3, 1, 0.5, prefix_queries=10, prefix_hits=5)),
        (SGLANG_NEW, EngineState(7, 6, 0.4, 10000, prefix_hit_ratio=0.4)),
        (SGLANG_OLD, EngineState(7, 6, 0.4, 5000, prefix_hit_ratio=0.4)),
        (LLAMACPP_NEW, EngineState(4, 46)),
        (LLAMACPP_OLD, EngineState(4, 46, 0.125)),
    ],
    ids=["vllm", "vllm-v0", "vllm-0.9", "sglang", "sglang-2024", "llama.cpp", "llama.cpp-2024"],
)
def test_beat_61_every_historical_name_is_understood(page: bytes, state: EngineState) -> None:
    assert state_of(page) == state


def test_beat_61_a_missing_metric_is_unknown_and_not_zero() -> None:
    for page in (b"", b"python_info 1\n", b"vllm:num_requests_waiting 0\n", b"vllm:num_requests_running NaN\n"):
        assert state_of(page).running is None
        assert not state_of(page).says_load


def test_beat_64_data_parallel_ranks_are_summed_and_ranks_of_one_batch_are_not() -> None:
    both = state_of(SGLANG_NEW)
    assert both.running == 2 + 5
    assert both.kv_usage == max(0.1, 0.4)


def test_a_memory_that_is_not_measured_yet_is_unknown() -> None:
    page = b'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n'
    assert state_of(page).kv_tokens is None
    assert state_of(b"vllm:cache_config_info 1.0\n").kv_tokens is None


@given(st.binary(max_size=300))
def test_no_page_makes_it_fail(page: bytes) -> None:
    state_of(page)
    state_of(VLLM_NEW.replace(b"3.0", page.replace(b"\n", b" ")))
