"""Which pods belong to a ModelServer, and which of them take requests.

A pod counts with its name, labels and readiness; what it reports of its load is no business of this module. The trap:
an empty selector would take every pod of the namespace, so it takes none.
"""

from collections.abc import Iterable, Mapping

from matrixinfer.api.names import INFER_DRAINING_SINCE, INFER_ENTRY, INFER_NAME
from matrixinfer.api.v1alpha1.modelserver import ModelServer
from matrixinfer.gateway.core.types import EndpointState
from matrixinfer.kube.codec import PodView

__all__ = ["endpoint_state", "is_over", "selected"]


def selected(server: ModelServer, pods: Iterable[PodView]) -> list[PodView]:
    """Return the pods of the namespace that the server selects, by name.

    Pods that ended are left out, and so are the workers of a group: only its entry pod serves. Of a server that splits
    prefill from decode, those that decode are taken: they can answer alone.
    """
    spec = server.spec.workload_selector
    if not spec.match_labels:
        return []
    wanted = {**spec.match_labels, **(spec.pd_group.decode_labels if spec.pd_group else {})}
    return sorted(
        (
            pod
            for pod in pods
            if pod.namespace == server.metadata.namespace
            and _has(pod.labels, wanted)
            and not _is_group_worker(pod.labels)
            and not is_over(pod)
        ),
        key=lambda pod: pod.name,
    )


def endpoint_state(pod: PodView) -> EndpointState | None:
    """Whether a pod takes requests, only finishes those it has, or is no endpoint at all (None)."""
    if not pod.pod_ip:
        return None
    if pod.deleting or INFER_DRAINING_SINCE in pod.annotations:
        return EndpointState.DRAINING
    return EndpointState.READY if pod.phase == "Running" and pod.ready else None


def is_over(pod: PodView) -> bool:
    """Whether all containers of the pod have ended for good."""
    return pod.phase in ("Succeeded", "Failed")


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


def _is_group_worker(labels: Mapping[str, str]) -> bool:
    return INFER_NAME in labels and labels.get(INFER_ENTRY) != "true"
