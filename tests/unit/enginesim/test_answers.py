"""Tokens, answers and vectors are functions of their inputs and nothing else."""

import base64
import math
import struct
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.enginesim.answers import answer_tokens, embedding, embedding_base64, natural_length, prompt_seed
from matrixinfer.enginesim.faults import Fault, FaultBoard, FaultKind, faults_from
from matrixinfer.enginesim.tokens import pieces, token_ids


@given(st.text())
def test_pieces_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert len(token_ids(text)) == len(pieces(text))


def test_a_common_beginning_has_common_tokens() -> None:
    assert token_ids("You are a helpful assistant. Hi")[:6] == token_ids("You are a helpful assistant. Bye")[:6]


def test_the_answer_depends_on_prompt_model_and_seed() -> None:
    seeds = {prompt_seed([1, 2], "a"), prompt_seed([2, 1], "a"), prompt_seed([1, 2], "b"), prompt_seed([1, 2], "a", 1)}
    assert len(seeds) == 4
    assert prompt_seed([1, 2], "a") == prompt_seed([1, 2], "a")
    texts = {"".join(islice(answer_tokens(seed), 30)) for seed in seeds}
    assert len(texts) == 4
    assert all(text.startswith("This is a simulated answer:") for text in texts)


@given(st.integers(0, (1 << 64) - 1))
def test_answers_end_by_themselves(seed: int) -> None:
    assert 24 <= natural_length(seed) < 88


@given(st.integers(0, (1 << 64) - 1), st.integers(1, 64))
def test_vectors_have_length_one_and_survive_base64(seed: int, dimensions: int) -> None:
    vector = embedding(seed, dimensions)
    assert math.isclose(math.fsum(value * value for value in vector), 1, rel_tol=1e-9)
    raw = base64.b64decode(embedding_base64(vector))
    assert struct.unpack(f"<{dimensions}f", raw) == pytest.approx(vector, abs=1e-6)


def test_a_fault_happens_as_often_as_it_was_asked_for_and_where() -> None:
    board = FaultBoard([Fault(FaultKind.ERROR, times=2, path="/v1/chat/*"), Fault(FaultKind.SLOW)])
    assert board.take("/v1/models") is None
    taken = [board.take("/v1/chat/completions") for _ in range(3)]
    assert [fault.kind if fault else None for fault in taken] == [FaultKind.ERROR, FaultKind.ERROR, None]
    assert board.state(FaultKind.SLOW) is not None
    board.clear()
    assert board.state(FaultKind.SLOW) is None


@pytest.mark.parametrize("wrong", [3, {"kind": "nova"}, {}, {"kind": "error", "colour": 1}])
def test_a_wrong_fault_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"kind|FaultKind|unknown member"):
        faults_from(wrong)
