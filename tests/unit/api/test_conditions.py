from datetime import UTC, datetime, timedelta

from matrixinfer.api.conditions import Condition, ConditionStatus, find_condition, is_true, set_condition

NOW = datetime(2026, 1, 31, 12, 0, 0, 999, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)


def test_a_new_condition_is_added_at_the_end():
    made = set_condition(set_condition([], "A", True, "R", "m", 1, NOW), "B", "False", "R", "m", 1, NOW)
    assert [condition.type for condition in made] == ["A", "B"]
    assert is_true(made, "A")
    assert not is_true(made, "B")
    assert not is_true(made, "C")


def test_the_transition_time_stays_while_the_status_stays():
    before = set_condition([], "Active", True, "Ready", "3 of 3", 1, NOW)
    after = set_condition(before, "Active", True, "Ready", "4 of 4", 2, LATER)
    assert after[0].last_transition_time == before[0].last_transition_time
    assert (after[0].message, after[0].observed_generation) == ("4 of 4", 2)


def test_the_transition_time_moves_with_the_status():
    after = set_condition(set_condition([], "Active", True, "R", "m", 1, NOW), "Active", False, "R", "m", 1, LATER)
    assert after[0].last_transition_time == LATER.replace(microsecond=0)
    assert after[0].status is ConditionStatus.FALSE


def test_setting_what_is_already_so_changes_nothing():
    before = set_condition([], "Active", True, "R", "m", 1, NOW)
    assert set_condition(before, "Active", True, "R", "m", 1, LATER) == before


def test_a_condition_reads_back_as_it_was_written():
    (condition,) = set_condition([], "Active", True, "R", "m", 1, NOW)
    manifest = condition.to_manifest()
    assert manifest["lastTransitionTime"] == "2026-01-31T12:00:00Z"
    assert find_condition([Condition.model_validate(manifest)], "Active") == condition
