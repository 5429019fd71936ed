"""The one error of this library: what went wrong and what to do about it, in a sentence for the user."""

__all__ = ["ClusterError"]


class ClusterError(Exception):
    """The local cluster cannot do what was asked; the message says why and what helps."""
