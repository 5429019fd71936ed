from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.api import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("30s", 30), ("1m30s", 90), ("1h", 3600), ("500ms", 0.5), ("-1.5h", -5400), (".5s", 0.5), ("1µs", 1e-6)],
)
def test_go_syntax_is_read(text: str, seconds: float):
    assert durations.parse(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "1", "s", "1d", "1 s", "one", "1m30", "9999999h"])
def test_what_go_refuses_is_refused(text: str):
    with pytest.raises(ValueError, match=r"duration|292 years"):
        durations.parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (60, "1m0s"), (90, "1m30s"), (3600, "1h0m0s"), (0.25, "250ms"), (1.5, "1.5s")]
)
def test_the_canonical_form_is_gos(seconds: float, text: str):
    assert durations.format(timedelta(seconds=seconds)) == text


@given(st.timedeltas(min_value=timedelta(days=-1000), max_value=timedelta(days=1000)))
def test_what_is_written_reads_back(value: timedelta):
    assert durations.parse(durations.format(value)) == value
