"""What a decision may look at, as one value."""

from collections.abc import Mapping, Sequence

import msgspec

from matrixinfer.gateway.core.load import EngineLoads
from matrixinfer.gateway.core.types import Endpoint

__all__ = ["View"]


class View(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """All that a decision may look at. The sequences run parallel: one item per endpoint; mappings are sparse.

    The seam to everybody who knows something: load and engine reports come from the board, what is ejected from the
    breakers, what is cached from the prefix index. What nobody knows keeps its default.
    """

    endpoints: Sequence[Endpoint]
    requests: Sequence[int]
    """Our own in flight, over all workers."""
    prefill_tokens: Sequence[int]
    """Tokens of those that wait for their first byte and are not expected in the endpoint's cache."""
    decode_tokens: Sequence[int]
    """Tokens that the answers in flight are still expected to have."""
    engines: EngineLoads | None = None
    """What engines last said of themselves; None when nobody asks them."""
    cached_tokens: Mapping[int, int] = {}
    """By position: prompt tokens of this request that the endpoint probably has in its cache."""
    adapter_at: frozenset[int] | None = None
    """Positions where the request's adapter is probably loaded; None when it asks for none."""
    prompt_tokens: int = 0
    """Estimate for this request."""
    tried: frozenset[str] = frozenset()
    """Uids of the pods that this request already failed on."""
    ejected: frozenset[str] = frozenset()
    """Uids of the pods that circuit breakers leave out for now."""
    common_tokens: int = 0
    """Likewise of all the other endpoints: the beginning of the prompt is so common that anyone may have it."""
    home: int | None = None
    """Position where a prompt of this beginning belongs as long as nobody is known to have it: every gateway that sees
    the same endpoints finds the same one."""
    limit: int | None = None
    """Most requests that one endpoint may have in flight."""
    session_at: Sequence[int] = ()
    """Positions that the conversation of this request belongs to, best first; empty when it has none."""
