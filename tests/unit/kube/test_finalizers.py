"""Finalizer steps are idempotent and optimistic."""

from matrixinfer.kube import finalizers
from matrixinfer.kube.resource import PODS, Key

KEY = Key("n", "a")


def test_adding_keeps_the_others() -> None:
    step = finalizers.add(PODS, KEY, "u", "7", ["theirs"], "ours")
    assert step is not None
    assert step.patch == {"metadata": {"finalizers": ["theirs", "ours"]}}
    assert (step.uid, step.resource_version) == ("u", "7")
    assert finalizers.add(PODS, KEY, "u", "7", ["ours"], "ours") is None


def test_removing_keeps_the_others() -> None:
    step = finalizers.remove(PODS, KEY, "u", "7", ["theirs", "ours"], "ours")
    assert step is not None
    assert step.patch == {"metadata": {"finalizers": ["theirs"]}}
    assert finalizers.remove(PODS, KEY, "u", "7", ["theirs"], "ours") is None
