"""A worker's config becomes flags that the engine reads back as they were meant."""

import argparse
import json
from contextlib import suppress

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from matrixinfer.engines.config_flags import to_flags
from matrixinfer.engines.errors import ConfigRefused


@pytest.mark.parametrize(
    ("config", "argv"),
    [
        ({"max-model-len": 4096}, ["--max-model-len", "4096"]),
        ({"max_model_len": "16k"}, ["--max-model-len", "16k"]),
        ({"--seed": 3}, ["--seed", "3"]),
        ({"maxModelLen": 1}, ["--maxModelLen", "1"]),
        ({"trust-remote-code": True}, ["--trust-remote-code"]),
        ({"trust-remote-code": ""}, ["--trust-remote-code"]),
        ({"enable-prefix-caching": False}, ["--no-enable-prefix-caching"]),
        ({"disable-log-stats": False, "no-x": False}, []),
        ({"headless": False}, []),
        ({"x": None, "y": []}, []),
        ({"gpu-memory-utilization": 0.9}, ["--gpu-memory-utilization", "0.9"]),
        ({"block-size": 32.0}, ["--block-size", "32"]),
        ({"cudagraph-capture-sizes": [1, 2, 4]}, ["--cudagraph-capture-sizes", "1", "2", "4"]),
        (
            {"kv-transfer-config": {"kv_role": "kv_both", "a": [1]}},
            ["--kv-transfer-config", '{"kv_role":"kv_both","a":[1]}'],
        ),
        ({"lora-modules": [{"name": "a", "path": "/p"}]}, ["--lora-modules", '{"name":"a","path":"/p"}']),
        ({"b": 1, "a": 2}, ["--a", "2", "--b", "1"]),
        ({"x": "--evil"}, ["--x=--evil"]),
        ({"x": -1}, ["--x=-1"]),
        ({"x": "a b; $(rm) {1,2}"}, ["--x", "a b; $(rm) {1,2}"]),
        (None, []),
    ],
)
def test_each_json_value_has_one_form(config: object, argv: list[str]) -> None:
    assert list(to_flags(config, negatable=True, bare_only={"headless"}).argv) == argv


def test_false_is_nothing_where_the_engine_has_no_negated_flags() -> None:
    assert to_flags({"enable-metrics": False}).argv == ()


def test_reserved_flags_are_left_out_and_reported() -> None:
    flags = to_flags({"port": 1, "served_model_name": "x", "tp": 2}, reserved={"port", "served-model-name"})
    assert flags.argv == ("--tp", "2")
    assert flags.ignored == ("port", "served-model-name")


@pytest.mark.parametrize("key", ["", "a b", "-", "1x", "a=b", "é", "a;b", "--"])
def test_a_key_that_is_no_flag_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigRefused) as refusal:
        to_flags({key: 1})
    assert refusal.value.key == key


def test_two_spellings_of_one_flag_are_refused() -> None:
    with pytest.raises(ConfigRefused, match="--max-model-len twice"):
        to_flags({"max_model_len": 1, "max-model-len": 2})


@pytest.mark.parametrize("config", [[], "x", 3, True])
def test_only_an_object_is_a_config(config: object) -> None:
    with pytest.raises(ConfigRefused, match="must be an object"):
        to_flags(config)


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text("-a ", max_size=4)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)
)
keys = st.from_regex(r"[a-m]{1,4}(-[a-m])?", fullmatch=True)
configs = st.dictionaries(keys, values, max_size=4)
few = settings(max_examples=40)


@few
@given(configs)
def test_no_value_ever_becomes_a_flag_of_its_own(config: dict[str, object]) -> None:
    """The engine reads the words back as exactly the flags of the config, or the config is refused."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for key in config:
        parser.add_argument(f"--{key}", nargs="*")
    try:
        argv = to_flags(config).argv
    except ConfigRefused:
        assume(False)
    _, unknown = parser.parse_known_args(argv)
    assert unknown == []
    assert all(not word.startswith("--") or word.partition("=")[0][2:] in config for word in argv)


def test_a_later_list_item_that_looks_like_a_flag_is_refused() -> None:
    with pytest.raises(ConfigRefused, match="would read as a flag"):
        to_flags({"x": ["a", "--evil"]})
    assert to_flags({"x": [1, -2]}).argv == ("--x", "1", "-2")


@few
@given(configs)
def test_order_of_keys_never_matters(config: dict[str, object]) -> None:
    turned = dict(reversed(config.items()))
    with suppress(ConfigRefused):
        assert to_flags(config, negatable=True) == to_flags(turned, negatable=True)


@few
@given(st.dictionaries(st.text(min_size=1), values, min_size=1, max_size=3))
def test_nested_objects_arrive_as_the_same_json(value: dict[str, object]) -> None:
    _, word = to_flags({"x": value}).argv
    assert json.loads(word) == value
