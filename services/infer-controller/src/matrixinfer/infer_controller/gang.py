"""Which scheduler places the pods, and what is said about gangs.

Owns one decision: pods must start whether or not a gang scheduler is there. Placing a group together is not done by
this version, so a ModelInfer that asks for it gets a condition that says so, and its pods are placed one by one. The
trap: older manifests all carry `schedulerName: volcano`, and handing that to pods of a cluster without Volcano leaves
them pending for ever.
"""

from typing import Final

from matrixinfer.infer_controller.fleet import Infer, Template

__all__ = ["VOLCANO", "scheduler_of", "unmet_wish"]

VOLCANO: Final = "volcano"
"""The scheduler name that asks for gangs."""


def scheduler_of(template: Template) -> str:
    """Return the scheduler that pods name; empty is the default of the cluster."""
    return "" if template.scheduler_name == VOLCANO else template.scheduler_name


def unmet_wish(infer: Infer) -> str:
    """Return the sentence that tells what is not enforced; empty when nothing was asked for."""
    if not infer.wants_gang and infer.template.scheduler_name != VOLCANO:
        return ""
    return (
        "gang scheduling is not available: pods are placed one by one by the default scheduler; "
        "leave out schedulerName and gangSchedule to clear this condition"
    )
