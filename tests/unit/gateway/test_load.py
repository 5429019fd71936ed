"""How far an engine has come with a request, judged from outside."""

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.gateway.core.load import Burden, Progress, burden, progress

LAID = Burden(2000, 256)


def test_a_request_is_estimated_from_its_bytes_and_what_it_allows() -> None:
    assert burden(4001) == Burden(1001, 256)
    assert burden(0, 10) == Burden(0, 10)
    assert burden(8, 10**9) == Burden(2, 256)
    assert burden(8, -5).decode_tokens == 1


def test_a_stream_is_read_when_it_begins_and_shrinks_by_its_pieces() -> None:
    assert progress(LAID, streams=True, pieces=0, seconds=1000) == Progress(False, 256)
    assert progress(LAID, streams=True, pieces=1, seconds=0) == Progress(True, 255)
    assert progress(LAID, streams=True, pieces=200, seconds=0) == Progress(True, 56)


def test_a_running_answer_is_never_as_good_as_done() -> None:
    assert progress(LAID, streams=True, pieces=9999, seconds=0).decode_tokens == 16
    assert progress(Burden(1, 3), streams=True, pieces=9999, seconds=0).decode_tokens == 3


def test_an_answer_in_one_piece_is_followed_by_the_time_it_takes() -> None:
    assert progress(LAID, streams=False, pieces=0, seconds=1.4) == Progress(False, 256)
    assert progress(LAID, streams=False, pieces=0, seconds=2.5) == Progress(True, 236)
    assert progress(LAID, streams=False, pieces=0, seconds=600) == Progress(True, 16)


@given(
    st.builds(Burden, st.integers(0, 10**7), st.integers(0, 10**6)),
    st.booleans(),
    st.integers(0, 10**6),
    st.floats(0, 1e6),
)
def test_what_is_left_is_never_more_than_was_expected_nor_less_than_nothing(
    laid: Burden, streams: bool, pieces: int, seconds: float
) -> None:
    come = progress(laid, streams=streams, pieces=pieces, seconds=seconds)
    assert 0 <= come.decode_tokens <= laid.decode_tokens
