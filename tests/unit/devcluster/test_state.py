"""What is remembered between commands, and who may act on it."""

import fcntl
import shutil
from pathlib import Path

import pytest

from matrixinfer.devcluster.layout import Instance, instance
from matrixinfer.devcluster.state import State, hold_as_user, is_unused, load, save, transition, wait_until_unused


@pytest.fixture
def place(tmp_path: Path) -> Instance:
    return instance("x", tmp_path)


def test_a_state_is_read_as_it_was_written(place: Instance):
    state = State("b", "https://127.0.0.1:1", True, True, {"etcd": ["etcd", "--a"]}, {"ns.svc.80": 8080})
    save(place, state)
    assert load(place) == state


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"tier": "a"}', b'{"unknown": 1, "tier": "a", "server": ""}'])
def test_an_unreadable_state_is_none(place: Instance, content: bytes):
    place.folder.mkdir(parents=True)
    place.state_file.write_bytes(content)
    assert load(place) is None


def test_no_state_is_none(place: Instance):
    assert load(place) is None


def test_a_cluster_is_unused_when_its_last_user_is_gone(place: Instance):
    with transition(place):
        first, second = hold_as_user(place), hold_as_user(place)
        assert not is_unused(place)
        first.close()
        assert not is_unused(place)
        second.close()
        assert is_unused(place)
    wait_until_unused(place)


def test_waiting_for_the_users_of_a_removed_cluster_ends(place: Instance):
    wait_until_unused(place)
    assert not place.folder.exists()


def test_a_transition_whose_folder_was_removed_takes_the_new_lock(place: Instance):
    """The lock of a removed file protects nothing: whoever waited for it must take the one that is there."""
    with transition(place):
        stale = place.transition_lock.open()
        shutil.rmtree(place.folder)
    fcntl.flock(stale, fcntl.LOCK_EX)
    with transition(place), pytest.raises(BlockingIOError), place.transition_lock.open() as fresh:
        fcntl.flock(fresh, fcntl.LOCK_EX | fcntl.LOCK_NB)
    stale.close()
