"""The canonical prompt: what begins alike for an engine begins alike here, and nothing else does."""

import base64
import json
from itertools import pairwise
from typing import Any

import pytest

from matrixinfer.gateway.core.prompt import (
    BLOCK_ENDS,
    NOTHING,
    adapter_key,
    chain,
    matched_tokens,
    read_prompt,
    seed_of,
)

LONG = "You are the assistant of a large company and know all of its rules. " * 40
SEED = seed_of("tenant", "model", "")
TOOLS = [{"type": "function", "function": {"name": f"f{i}", "description": "It does things. " * 10}} for i in range(20)]


def hashes(seed: int = SEED, **members: Any) -> list[int]:
    return chain(read_prompt(json.dumps({"model": "m", **members}).encode()).text, seed)


def chat(*texts: Any, **members: Any) -> list[int]:
    roles = ["system", *["user", "assistant"] * len(texts)]
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return hashes(messages=turns, **members)


def common(one: list[int], other: list[int]) -> int:
    """Blocks that both begin with; after the first difference nothing may be equal, because the chain runs on."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert not set(one[same:]) & set(other[same:])
    return same


# -- what is the same prompt ------------------------------------------------------------------------------------------


def test_the_next_turn_begins_with_the_turns_before() -> None:
    first = chat(LONG, "question one, which is not short at all" * 20)
    second = chat(LONG, "question one, which is not short at all" * 20, "answer" * 200, "question two" * 50)
    assert common(first, second) == len(first) > 5
    assert len(second) > len(first)


def test_a_different_question_shares_the_system_prompt_only() -> None:
    shared = common(chat(LONG, "alpha " * 400), chat(LONG, "omega " * 400))
    assert BLOCK_ENDS[shared - 1] <= len(LONG) + len("system") + 1 < BLOCK_ENDS[shared]


def test_tools_are_part_of_the_prompt_and_come_first() -> None:
    """BEAT-11: tool definitions are often the longest shared beginning."""
    with_tools = chat("short", "alpha " * 400, tools=TOOLS)
    assert common(with_tools, chat("short", "omega " * 400, tools=TOOLS)) >= 5
    assert common(with_tools, chat("short", "alpha " * 400)) == 0


def test_json_style_and_member_order_make_no_difference() -> None:
    turns = [{"role": "system", "content": LONG + "é漢"}, {"content": "q" * 600, "role": "user"}]
    body = {"model": "m", "messages": turns, "seed": 2**53 + 1}
    reordered = {"temperature": 0, "messages": [dict(reversed(turn.items())) for turn in turns], "model": "other"}
    plain = read_prompt(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
    assert read_prompt(json.dumps(reordered, indent=2).encode()) == plain


def test_a_text_is_the_same_in_parts() -> None:
    """BEAT-11: list contents count, and cache markers that move from turn to turn do not."""
    parts = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]
    assert chat(parts, "q" * 600) == chat(LONG, "q" * 600)


def test_images_count_by_their_digest() -> None:
    def image(data: bytes) -> Any:
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        return [{"type": "text", "text": "look: "}, {"type": "image_url", "image_url": {"url": url}}]

    same, other = bytes(100_000), bytes(99_999) + b"x"
    assert chat(LONG, image(same), "a" * 900) == chat(LONG, image(same), "a" * 900)
    assert common(chat(LONG, image(same), "a" * 900), chat(LONG, image(other), "a" * 900)) == len(chat(LONG, ""))
    turns = [{"role": "user", "content": image(same)}]
    prompt = read_prompt(json.dumps({"messages": turns}).encode())
    assert len(prompt.text) < 200
    assert 500 < prompt.tokens < 3000


def test_messages_of_anthropic() -> None:
    one = hashes(system=LONG, messages=[{"role": "user", "content": "alpha " * 300}], max_tokens=5)
    parts = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]
    other = hashes(system=parts, messages=[{"role": "user", "content": [{"type": "text", "text": "alpha " * 300}]}])
    assert one == other


def test_tool_results_are_read() -> None:
    def result(text: str) -> list[int]:
        part = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": text * 300}]}
        return hashes(messages=[{"role": "user", "content": [part]}])

    assert common(result("alpha "), result("omega ")) == 0
    assert len(result("alpha ")) >= 3


def test_responses() -> None:
    assert hashes(input="alpha " * 300) != hashes(input="omega " * 300)
    items = [{"role": "user", "content": [{"type": "input_text", "text": "alpha " * 300}]}]
    turn = [{"role": "user", "content": "alpha " * 300}]
    assert hashes(instructions=LONG, input=items) == hashes(instructions=LONG, input=turn)
    called = [*items, {"type": "function_call", "name": "f", "arguments": "{}"}, {"output": "x" * 900}]
    assert common(hashes(input=items), hashes(input=called)) == len(hashes(input=items))


@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}])
def test_completions_in_all_four_forms(style: Any) -> None:
    """BEAT-05: a text, texts, tokens, lists of tokens."""

    def made(prompt: Any) -> list[int]:
        return chain(read_prompt(json.dumps({"prompt": prompt}, **style).encode()).text, SEED)

    tokens = list(range(1000, 2000))
    text = "alpha " * 400
    assert made(text)[:3] == made([text, "more"])[:3]
    assert made(tokens)[:5] == made([tokens, [1, 2]])[:5] == chain(",".join(map(str, tokens)).encode(), SEED)[:5]
    assert len(made(tokens)) > 5


# -- what is not ------------------------------------------------------------------------------------------------------


def test_tenants_models_and_adapters_share_nothing() -> None:
    """BEAT-57: the model is what the engine calls it, so clients' names for one model share and models do not."""
    seeds = [seed_of("a", "m", ""), seed_of("b", "m", ""), seed_of("a", "n", ""), seed_of("a", "m", "l")]
    chains = [set(hashes(seed, prompt=LONG)) for seed in seeds]
    assert len(set.union(*chains)) == sum(map(len, chains))
    assert len({*seeds, adapter_key("m", "l"), adapter_key("m", "k")}) == 6


def test_clients_can_keep_their_prompts_apart() -> None:
    assert not set(hashes(prompt=LONG, cache_salt="a")) & set(hashes(prompt=LONG, cache_salt="b"))


def test_an_equal_block_after_another_beginning_is_no_hit() -> None:
    """BEAT-56."""
    assert common(hashes(prompt="a" * 512 + LONG), hashes(prompt="b" * 512 + LONG)) == 0


def test_roles_and_borders_count() -> None:
    body = "x" * 600
    assert (
        common(chat("", body), hashes(messages=[{"role": "user", "content": ""}, {"role": "user", "content": body}]))
        == 0
    )
    one, other = (
        [{"role": "user", "content": a}, {"role": "user", "content": b}] for a, b in (("ab", "c"), ("a", "bc"))
    )
    assert read_prompt(json.dumps({"messages": one}).encode()) != read_prompt(json.dumps({"messages": other}).encode())


# -- how far ----------------------------------------------------------------------------------------------------------


def test_there_is_no_horizon() -> None:
    """BEAT-49: 100 kB that differ at the end share nearly all of it."""
    text = "".join(f"{i} " for i in range(20_000))[:100_000]
    one, other = hashes(prompt=text + "alpha" * 2000), hashes(prompt=text + "omega" * 2000)
    shared = BLOCK_ENDS[common(one, other) - 1]
    assert 0.93 * 100_000 < shared <= 100_000
    assert len(one) < 80


def test_blocks_grow_with_what_lies_before_them() -> None:
    sizes = [b - a for a, b in pairwise((0, *BLOCK_ENDS))]
    assert sizes == sorted(sizes)
    assert all(size == 512 or size * 16 <= end - size for size, end in zip(sizes, BLOCK_ENDS, strict=True))
    assert sum(end <= 1_000_000 for end in BLOCK_ENDS) < 150


def test_a_part_of_a_prompt_can_be_hashed() -> None:
    text = LONG.encode()
    assert chain(text, SEED, 1024) == chain(text, SEED)[:2]
    assert chain(b"x" * 511, SEED) == []


# -- how many tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        # Generous bounds: 3 to 7 Latin characters a token, 0.7 to 2.5 Chinese or Japanese, 1.5 to 7 Cyrillic ones.
        ("The quick brown fox jumps over the lazy dog and runs into the forest. " * 20, 200, 450),
        ("机器学习是人工智能的一个重要分支它使计算机能够从数据中学习。" * 20, 250, 900),
        ("機械学習は人工知能の重要な分野でありデータから学ぶことができます。" * 20, 300, 1050),
        ("Машинное обучение является важной областью искусственного интеллекта. " * 20, 200, 900),
        ("def f(x):\n    return [y ** 2 for y in range(x) if y % 3 == 0]\n" * 20, 250, 800),
    ],
)
def test_tokens_are_estimated_in_every_script(text: str, low: int, high: int) -> None:
    """BEAT-75."""
    assert low < read_prompt(json.dumps({"prompt": text}).encode()).tokens < high


def test_matched_tokens_are_a_share() -> None:
    prompt = read_prompt(json.dumps({"prompt": "word " * 1000}).encode())
    assert matched_tokens(0, prompt) == 0
    assert matched_tokens(9, prompt) == prompt.tokens * 9 * 512 // 5000


@pytest.mark.parametrize(
    ("members", "limit"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 9, "max_tokens": 7}, 9),
        ({"max_output_tokens": 3, "n": 4}, 12),
        ({"max_tokens": "many"}, None),
        ({"max_tokens": -1}, None),
    ],
)
def test_the_limit_of_the_answer(members: Any, limit: int | None) -> None:
    assert read_prompt(json.dumps({"prompt": "x", **members}).encode()).max_tokens == limit


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"messages": 3}',
        b'{"messages": [7]}',
        b'{"messages": [{"role": 3}]}',
        b'{"messages": [{"role": "user", "content": {"a": 1}}]}',
        b'{"prompt": "\xff"}',
        b'{"tools": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_what_cannot_be_understood_has_no_prompt(body: bytes) -> None:
    assert read_prompt(body) in (NOTHING, read_prompt(b"{}"))


@pytest.mark.parametrize("body", [b'{"prompt": 3}', b'{"prompt": null}', b'{"input": {"a": [1]}}', b'{"prompt": []}'])
def test_odd_prompts_are_no_error(body: bytes) -> None:
    assert chain(read_prompt(body).text, SEED) == []
