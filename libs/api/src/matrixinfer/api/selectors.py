"""Label selectors: which labels a selector takes, and its text for a list call."""

from collections.abc import Mapping

from matrixinfer.api.meta import LabelSelector, LabelSelectorRequirement

__all__ = ["format", "matches"]


def matches(selector: LabelSelector | Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """True when `labels` has all that the selector asks for. An empty selector takes everything."""
    if not isinstance(selector, LabelSelector):
        return all(labels.get(key) == value for key, value in selector.items())
    return matches(selector.match_labels, labels) and all(
        _holds(requirement, labels) for requirement in selector.match_expressions
    )


# The name of the module qualifies it: `selectors.format`.
def format(match_labels: Mapping[str, str]) -> str:  # noqa: A001
    """Return the text form (`a=b,c=d`), keys in order, for list calls and the scale subresource."""
    return ",".join(f"{key}={value}" for key, value in sorted(match_labels.items()))


def _holds(requirement: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            return False
