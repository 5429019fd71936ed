"""Rules: which requests they take."""

import time

import pytest

from matrixinfer.gateway.core.match import Ask, PatternError, predicate, string_test
from matrixinfer.gateway.core.types import Match, StringMatch


def ask(model: str = "m", path: str = "/v1/chat/completions", **headers: str) -> Ask:
    return Ask(model, path, headers)


@pytest.mark.parametrize(
    ("match", "text", "expected"),
    [
        (StringMatch(exact="gold"), "gold", True),
        (StringMatch(exact="gold"), "golden", False),
        (StringMatch(prefix="gold"), "golden", True),
        (StringMatch(prefix="gold"), "a golden", False),
        (StringMatch(regex="o.d"), "a golden", True),
        (StringMatch(regex="^o.d"), "a golden", False),
        (StringMatch(exact="a", prefix="b", regex="c"), "a", True),
        (StringMatch(prefix="b", regex="c"), "c", False),
        (StringMatch(), "anything", True),
        (StringMatch(exact=""), "", True),
    ],
)
def test_exact_goes_before_prefix_before_regex(match: StringMatch, text: str, expected: bool) -> None:
    assert string_test(match)(text) is expected


def test_all_conditions_must_hold() -> None:
    holds = predicate(
        Match(
            headers=(("x-plan", StringMatch(exact="gold")), ("x-team", StringMatch(prefix="a"))),
            uri=StringMatch(prefix="/v1/chat"),
            model="m",
        )
    )
    assert holds(Ask("m", "/v1/chat/completions", {"x-plan": "gold", "x-team": "ab"}))
    assert not holds(Ask("m", "/v1/completions", {"x-plan": "gold", "x-team": "ab"}))
    assert not holds(Ask("m", "/v1/chat/completions", {"x-plan": "gold"}))
    assert not holds(Ask("n", "/v1/chat/completions", {"x-plan": "gold", "x-team": "ab"}))


def test_a_rule_without_conditions_takes_everything() -> None:
    assert predicate(None)(ask())
    assert predicate(Match())(ask())


def test_an_absent_header_counts_as_empty() -> None:
    assert predicate(Match(headers=(("x-plan", StringMatch(regex=".*")),)))(ask())
    assert not predicate(Match(headers=(("x-plan", StringMatch(regex=".+")),)))(ask())


def test_a_hostile_pattern_takes_linear_time() -> None:
    search = string_test(StringMatch(regex="(a+)+$"))
    began = time.process_time()
    assert not search("a" * 20_000 + "b")
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize("pattern", ["(", "a" * 2000, r"(?<=a)b", "((a{1000}){1000}){1000}"])
def test_a_pattern_that_re2_refuses_is_an_error_with_a_reason(pattern: str) -> None:
    with pytest.raises(PatternError, match=r"."):
        string_test(StringMatch(regex=pattern))
