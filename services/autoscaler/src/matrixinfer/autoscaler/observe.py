"""Reading the stores: everything one binding is about, in one synchronous look.

Owns: which objects belong together. Refuses: awaiting, deciding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from matrixinfer.api import names
from matrixinfer.api.v1alpha1.autoscaling import AutoscalingPolicy, AutoscalingPolicyBinding, Target
from matrixinfer.autoscaler.endpoints import Endpoint
from matrixinfer.autoscaler.seen import BindingSeen, Verdict
from matrixinfer.autoscaler.views import InferView
from matrixinfer.kube.codec import PodView
from matrixinfer.kube.resource import Key
from matrixinfer.kube.store import Store

__all__ = ["Measured", "Stores", "Verdicts", "by_policy", "by_target", "pods_of"]

DEFAULT_PORT: Final = 8000


class Verdicts(Protocol):
    """Where the latest verdict of a binding is found."""

    def latest(self, key: Key, uid: str) -> Verdict | None:
        """The latest verdict of this very binding."""
        ...


@dataclass(frozen=True, slots=True)
class Measured:
    """A pod that is to be scraped, and where."""

    uid: str
    restarts: int
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Stores:
    """The caches of this service."""

    bindings: Store[AutoscalingPolicyBinding]
    policies: Store[AutoscalingPolicy]
    infers: Store[InferView]
    pods: Store[PodView]

    def seen(self, key: Key, verdicts: Verdicts | None = None) -> BindingSeen | None:
        """Everything one binding is about; `None` when it is gone."""
        binding = self.bindings.get(key)
        if binding is None:
            return None
        target = BindingSeen(binding, None, None).target
        name = target.target_ref.name if target is not None else None
        return BindingSeen(
            binding,
            self.policies.get(Key(key.namespace, binding.spec.policy_ref.name)),
            self.infers.get(Key(key.namespace, name)) if name else None,
            None if verdicts is None else verdicts.latest(key, binding.metadata.uid),
        )

    def measured(self, target: Target, infer: InferView) -> tuple[tuple[Measured, ...], int]:
        """The pods to scrape, and how many there should be besides: starting, broken or not yet made.

        Pods that are being removed are neither.
        """
        pods = [pod for pod in self.pods.by_index("infer", str(infer.key)) if _is_meant(pod, target)]
        ready = [pod for pod in pods if pod.ready and pod.pod_ip]
        expected = max(infer.replicas * infer.entry_pods(target.role), len(pods))
        return tuple(_measured(pod, target, infer) for pod in ready), expected - len(ready)


def _is_meant(pod: PodView, target: Target) -> bool:
    """True for a living pod with all the labels that the target asks for."""
    wanted = dict(target.additional_match_labels)
    if target.role is not None:
        wanted[names.INFER_ROLE] = target.role
    leaving = pod.deleting or names.INFER_DRAINING_SINCE in pod.annotations
    return not leaving and all(pod.labels.get(label) == value for label, value in wanted.items())


def _measured(pod: PodView, target: Target, infer: InferView) -> Measured:
    """A pod's endpoints: the one that the user named, and the engine's own port behind it."""
    port = infer.engine_port(pod.labels.get(names.INFER_ROLE)) or DEFAULT_PORT
    own = Endpoint(pod.pod_ip, port)
    named = target.metric_endpoint
    asked = () if named is None else (Endpoint(pod.pod_ip, named.port, _absolute(named.uri)),)
    return Measured(pod.uid, pod.restart_count, tuple(dict.fromkeys((*asked, own))))


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def by_target(binding: AutoscalingPolicyBinding) -> Sequence[str]:
    """Index of bindings: the ModelInfers that they scale, as `namespace/name`."""
    target = BindingSeen(binding, None, None).target
    return (str(Key(binding.metadata.namespace, target.target_ref.name or "")),) if target is not None else ()


def by_policy(binding: AutoscalingPolicyBinding) -> Sequence[str]:
    """Index of bindings: the policy that they use, as `namespace/name`."""
    return (str(Key(binding.metadata.namespace, binding.spec.policy_ref.name)),)


def pods_of(pod: PodView) -> Sequence[str]:
    """Index of pods: the ModelInfer that they belong to, as `namespace/name`."""
    name = pod.labels.get(names.INFER_NAME)
    return (str(Key(pod.namespace, name)),) if name else ()
