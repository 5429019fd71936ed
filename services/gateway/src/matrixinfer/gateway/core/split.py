"""Which target of a rule takes a request: by weight among those that can serve, replayable from the request id.

A draw is a hash of the request id and a salt, so the same id over the same snapshot gives the same answer for ever.
The trap: weights that ignore health send a share of the traffic to nowhere; a target that cannot serve gives its
share to the others.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

from xxhash import xxh3_64_intdigest

from matrixinfer.gateway.core.types import Rule, Target

__all__ = ["choose_target", "draw", "weighted"]

# 53 bits are what a float holds, so the result is never 1.0.
_DROPPED_BITS = 11
_UNIT = 1 << 53


@lru_cache(maxsize=64)
def _seed(salt: str) -> int:
    return xxh3_64_intdigest(salt.encode())


def draw(request_id: str, salt: str) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments; different salts are independent."""
    return (xxh3_64_intdigest(request_id.encode(), _seed(salt)) >> _DROPPED_BITS) / _UNIT


def weighted(weights: Sequence[int], number: float) -> int | None:
    """Return the position that `number` in [0, 1) falls on; None when no weight is above zero."""
    total = sum(weights)
    if total <= 0:
        return None
    at = number * total
    for position, weight in enumerate(weights):
        at -= weight
        if at < 0:
            return position
    return max(position for position, weight in enumerate(weights) if weight > 0)


def choose_target(rule: Rule, number: float, can_serve: Callable[[Target], bool]) -> Target | None:
    """Return the target for a request: weighted among those that can serve, else the first fallback that can.

    None when nothing can. A target of weight 0 takes no share, also when it is the only healthy one.
    """
    if len(rule.targets) == 1 and rule.targets[0].weight > 0 and can_serve(rule.targets[0]):
        return rule.targets[0]
    able = [target for target in rule.targets if target.weight > 0 and can_serve(target)]
    position = weighted([target.weight for target in able], number)
    if position is not None:
        return able[position]
    return next((target for target in rule.fallbacks if can_serve(target)), None)
