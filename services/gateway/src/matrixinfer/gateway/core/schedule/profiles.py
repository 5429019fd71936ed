"""The scheduling profiles that ship with the gateway."""

from typing import Final

from matrixinfer.gateway.core.schedule.filters import below_limit, untried
from matrixinfer.gateway.core.schedule.framework import Profile
from matrixinfer.gateway.core.schedule.pickers import best_of_two_among_ties
from matrixinfer.gateway.core.schedule.scorers import least_load

__all__ = ["LEAST_LOADED"]

LEAST_LOADED: Final = Profile(
    filters=(("untried", untried), ("below-limit", below_limit)),
    scorers=(("least-load", 1.0, least_load),),
    picker=("best-of-two-among-ties", best_of_two_among_ties),
)
"""Fewest requests in flight first, whoever of the workers sent them."""
