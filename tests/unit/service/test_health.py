"""A process is ready exactly when every claim holds, and the page says which does not."""

from matrixinfer.service.health import Checks


def test_nothing_claimed_yet_is_not_ready() -> None:
    verdict = Checks(when_empty="no check").ask()
    assert not verdict.ok
    assert "no check" in verdict.text


def test_nothing_claimed_is_alive() -> None:
    assert Checks().ask().ok


def test_one_missing_claim_is_enough_and_says_why() -> None:
    checks = Checks()
    checks.add("listener", lambda: True)
    checks.add("caches", lambda: "waiting for pods")
    verdict = checks.ask()
    assert not verdict.ok
    assert verdict.lines == ("[+] listener", "[-] caches: waiting for pods")


def test_false_without_a_reason_still_answers() -> None:
    checks = Checks()
    checks.add("caches", lambda: False)
    assert checks.ask().lines == ("[-] caches: not yet",)


def test_a_check_that_raises_does_not_hold_and_shows_the_error() -> None:
    def broken() -> bool:
        raise RuntimeError("boom")

    checks = Checks()
    checks.add("broken", broken)
    verdict = checks.ask()
    assert not verdict.ok
    assert "boom" in verdict.text


def test_an_empty_reason_does_not_count_as_true() -> None:
    checks = Checks()
    checks.add("caches", lambda: "")
    assert not checks.ask().ok
