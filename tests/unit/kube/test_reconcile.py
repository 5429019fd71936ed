"""From a plan and its report to what happens to the key."""

from datetime import timedelta

from matrixinfer.kube.apply import Failure, Report
from matrixinfer.kube.errors import Forbidden, NotOwned, ServerFault, TooManyRequests
from matrixinfer.kube.plan import Create, EventType, Note, Plan
from matrixinfer.kube.reconcile import Again, Done, Retry, Terminal, notes_after, outcome
from matrixinfer.kube.resource import PODS

STEP = Create(PODS, {"metadata": {"name": "a", "namespace": "n"}})


def failed(*errors: Exception) -> Report:
    return Report(failures=tuple(Failure(STEP, error) for error in errors))  # type: ignore[arg-type]


def test_nothing_more_to_do_is_done() -> None:
    assert outcome(Plan(), Report()) == Done()


def test_again_is_what_the_plan_asked_for() -> None:
    assert outcome(Plan(again_after=timedelta(seconds=3)), Report()) == Again(timedelta(seconds=3))


def test_an_error_of_the_plan_is_terminal_and_outweighs_again() -> None:
    assert outcome(Plan(error="bad", again_after=timedelta(seconds=3)), Report()) == Terminal("bad")


def test_a_failed_write_outweighs_all_and_is_retried() -> None:
    result = outcome(Plan(error="bad"), failed(ServerFault(500, "InternalError", "boom"), ServerFault(500, "x", "y")))
    assert isinstance(result, Retry)
    assert "boom" in result.error
    assert "1 more" in result.error


def test_the_patience_that_the_server_asked_for_is_kept() -> None:
    result = outcome(Plan(), failed(TooManyRequests(429, "r", "m", retry_after=4.0)))
    assert isinstance(result, Retry)
    assert result.after == timedelta(seconds=4)


def test_notes_are_sent_only_when_all_succeeded() -> None:
    plan = Plan(notes=[Note("PodsCreated", "3 pods were created")])
    assert notes_after(plan, Report()) == tuple(plan.notes)
    assert notes_after(plan, failed(ServerFault(500, "r", "m"))) == ()


def test_refusals_that_need_a_human_become_warnings() -> None:
    notes = notes_after(Plan(), failed(NotOwned("Pod n/a", "nobody"), Forbidden(403, "Forbidden", "exceeded quota")))
    assert [(note.reason, note.type) for note in notes] == [
        ("NotOwned", EventType.WARNING),
        ("Forbidden", EventType.WARNING),
    ]
    assert "exceeded quota" in notes[1].message
