"""A request meets the endpoints of one server: what is known of them is put into one view, and one is decided on.

Owns the gathering and the bookkeeping around the pure decision: which endpoints seem to have the prompt or the adapter,
what the request lays on the one that was chosen, and that it is noted there at once, before the engine has it. The
second of two simultaneous requests with one prompt follows the first; had it to wait for the first's answer, both would
be read from the beginning on two pods. There is no await in here.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec
from xxhash import xxh3_64_intdigest

from matrixinfer.gateway.board import LoadBoard
from matrixinfer.gateway.core.load import Burden, EngineLoads, answer_tokens, burden
from matrixinfer.gateway.core.prompt import Prompt, adapter_key, chain, matched_tokens, seed_of
from matrixinfer.gateway.core.schedule.framework import Decision, Profile, Refused, View, decide
from matrixinfer.gateway.core.schedule.profiles import TWO_RANDOM, profile_of
from matrixinfer.gateway.core.schedule.rung import Rung
from matrixinfer.gateway.core.session import SessionHomes
from matrixinfer.gateway.core.split import draw
from matrixinfer.gateway.core.table import Pool
from matrixinfer.gateway.core.types import Endpoint
from matrixinfer.gateway.prefixes import Found, PrefixIndex

__all__ = ["Placement", "Placer"]

_KV_TOKENS: Final = 262_144
"""What an engine's memory is taken for while it does not say: an 8B model on a 40 GB card."""
_RENEW_SHARE: Final = 8
"""An entry is written anew when its pod was sent this part of its memory since: an eighth."""
_HURRIED_BYTES: Final = 16 * 1024
"""So much of a prompt is hashed when there is little time."""
_HOME_BLOCKS: Final = 4
"""Prompts that begin with the same 2 KiB belong together, as long as nobody has more of one of them."""
_RING_POINTS: Final = 256
"""About so many places a ring has, and two for every endpoint at least: it is made anew with every change of a pool,
and the guard on affinity evens out what few places leave uneven."""
_NOTHING_FOUND: Final = Found({})


class Placement(msgspec.Struct, frozen=True, gc=False):
    """Where a request goes, and all that led there."""

    decision: Decision
    profile: Profile
    view: View
    rung: Rung
    burden: Burden
    _prefixes: PrefixIndex | None
    _noted: Sequence[int]
    _known: int
    _adapter: int
    """The adapter's key, if this is the first that the pod is sent for it; else 0."""
    _shown: int | None
    """The pod's clock after this; None when nothing was noted."""

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that was decided on."""
        return self.decision.endpoint

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that the endpoint probably has."""
        return self.view.cached_tokens.get(self.decision.position, self.view.common_tokens)

    def undo(self) -> None:
        """The endpoint did not get the request: it has neither the prompt nor the adapter, nor grew older by it.

        Whoever was placed there since may be reading that prompt now, taking it for known; then all stays noted.
        """
        prefixes, endpoint = self._prefixes, self.endpoint
        if prefixes is None:
            return
        if self._shown is not None and self._shown == prefixes.now(endpoint.slot):
            prefixes.forget(self._noted, endpoint.mark, known=self._known)
            if self._adapter:
                prefixes.forget((self._adapter,), endpoint.mark)
        prefixes.advance(endpoint.slot, -_tokens(self.burden))


class Placer:
    """Places requests on the endpoints of one pool. Built once per revision."""

    def __init__(self, pool: Pool, board: LoadBoard, prefixes: PrefixIndex | None, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._reader = board.reader(pool.slots)
        self._prefixes = prefixes
        self._clock = clock
        self._profile = profile_of(pool.server.plugins)
        self._uses_prefixes = any(name in _ASKS_FOR_PREFIXES for name, _, _ in self._profile.scorers)
        self._pods = {endpoint.mark: endpoint.slot for endpoint in pool.candidates}
        self._positions = {endpoint.mark: i for i, endpoint in enumerate(pool.candidates)}
        adapters = {name for endpoint in pool.candidates for name in endpoint.adapters}
        self._loaded = {
            name: frozenset(i for i, endpoint in enumerate(pool.candidates) if name in endpoint.adapters)
            for name in adapters
        }
        self._ring: list[tuple[int, int]] = []
        self._session_homes = SessionHomes(pool.candidates if pool.server.policy.session else ())
        self._seeds: dict[tuple[str, str, str], tuple[int, int]] = {}

    def place(
        self,
        request_id: str,
        prompt: Prompt,
        size: int,
        *,
        model: str = "",
        adapter: str = "",
        tenant: str = "",
        tried: frozenset[str] = frozenset(),
        ejected: frozenset[str] = frozenset(),
        session: str = "",
        rung: Rung = Rung.FULL,
    ) -> Placement | Refused:
        """Decide on an endpoint, and note that it is being sent the prompt; `size` is that of the body in bytes.

        `session` is the identity of its conversation. `model` is the name asked for, which is the engine's own where
        the server knows no other one.
        """
        pool, loads = self._pool, self._reader.loads()
        engines = self._reader.engines(self._clock())
        hashes: Sequence[int] = ()
        found = at_adapter = _NOTHING_FOUND
        key = 0
        prefixes = self._prefixes if self._uses_prefixes and rung <= Rung.SHORT_PREFIX else None
        if prefixes is not None:
            seed, key = self._seed(tenant, pool.server.model or model, adapter)
            text = prompt.text
            hashes = chain(text, seed, _HURRIED_BYTES) if rung else chain(text, seed)
            if hashes:
                found = prefixes.find(hashes, self._pods)
            if adapter:
                at_adapter = prefixes.find((key,), self._pods)
        view = View(
            pool.candidates,
            loads.requests,
            loads.prefill_tokens,
            loads.decode_tokens,
            engines,
            self._cached(found, engines, prompt) if found.holdings else {},
            self._with_adapter(adapter, at_adapter) if adapter else None,
            prompt.tokens,
            tried,
            ejected,
            matched_tokens(found.common_blocks, prompt),
            self._home(hashes, found) if hashes else None,
            pool.server.policy.max_in_flight_per_endpoint,
            session_at=self._session_homes.of(session) if session else (),
        )
        profile = TWO_RANDOM if rung is Rung.TWO_RANDOM else self._profile
        decision = decide(profile, view, partial(draw, request_id))
        if isinstance(decision, Refused):
            return decision
        laid = _burden(size, prompt, view.cached_tokens.get(decision.position, view.common_tokens))
        known, shown = 0, None
        if prefixes is not None:
            known, shown = self._note(prefixes, decision, found, hashes, key if adapter else 0, laid, engines)
        had_adapter = not adapter or at_adapter.common_blocks or decision.endpoint.mark in at_adapter.holdings
        new_adapter = 0 if had_adapter else key
        return Placement(decision, profile, view, rung, laid, prefixes, hashes, known, new_adapter, shown)

    def has_room(self) -> bool:
        """Whether an endpoint has fewer requests than it may have."""
        limit = self._pool.server.policy.max_in_flight_per_endpoint
        return limit is None or any(requests < limit for requests in self._reader.loads().requests)

    def _seed(self, tenant: str, model: str, adapter: str) -> tuple[int, int]:
        names = (tenant, model, adapter)
        seeds = self._seeds.get(names)
        if seeds is None:
            if len(self._seeds) >= _SEED_LIMIT:
                self._seeds.clear()
            seeds = self._seeds[names] = (seed_of(tenant, model, adapter), adapter_key(model, adapter))
        return seeds

    def _home(self, hashes: Sequence[int], found: Found) -> int | None:
        """Where a prompt belongs whose beginning nobody has: a place on a ring of all endpoints, by its first blocks.

        Gateways do not know what others sent; this lets them send new prompts to one place without asking.
        """
        blocks = len(hashes) if len(hashes) < _HOME_BLOCKS else _HOME_BLOCKS
        if found.common_blocks >= blocks:
            return None
        for held, _ in found.holdings.values():
            if held >= blocks:
                return None
        if not self._ring:
            self._ring = sorted(
                (xxh3_64_intdigest(f"{endpoint.uid} {turn}".encode()), i)
                for i, endpoint in enumerate(self._pool.candidates)
                for turn in range(max(2, _RING_POINTS // len(self._pool.candidates)))
            )
        return self._ring[bisect_left(self._ring, (hashes[blocks - 1], 0)) % len(self._ring)][1]

    def _with_adapter(self, adapter: str, found: Found) -> frozenset[int] | None:
        """Where the adapter is; None when it is so common that it makes no difference.

        Engines say who has it loaded; of those, the ones that were sent it lately have it at hand.
        """
        recent = None if found.common_blocks else frozenset(self._positions[mark] for mark in found.holdings)
        loaded = self._loaded.get(adapter)
        if loaded is None or len(loaded) == len(self._pool.candidates):
            return recent
        return (recent & loaded if recent is not None else None) or loaded

    def _cached(self, found: Found, engines: EngineLoads, prompt: Prompt) -> dict[int, int]:
        """Tokens by position, of those pods whose memory still has them."""
        cached = {}
        for mark, (blocks, age) in found.holdings.items():
            i = self._positions[mark]
            if age <= _memory(engines, i):
                cached[i] = matched_tokens(blocks, prompt)
        return cached

    def _note(
        self,
        prefixes: PrefixIndex,
        decision: Decision,
        found: Found,
        hashes: Sequence[int],
        key: int,
        laid: Burden,
        engines: EngineLoads,
    ) -> tuple[int, int | None]:
        """Return how many blocks were known, and what the pod's clock shows after those that were not."""
        endpoint = decision.endpoint
        blocks, age = found.holdings.get(endpoint.mark, (found.common_blocks, 0))
        # What was sent long ago is noted anew before the engine is taken to have forgotten it.
        fresh = age * _RENEW_SHARE <= _memory(engines, decision.position)
        before = prefixes.note(hashes, endpoint.mark, endpoint.slot, known=blocks if fresh else 0)
        if key:
            before = prefixes.note((key,), endpoint.mark, endpoint.slot)
        tokens = _tokens(laid)
        prefixes.advance(endpoint.slot, tokens)
        return blocks, None if before is None else before + tokens


_SEED_LIMIT: Final = 1024
_ASKS_FOR_PREFIXES: Final = frozenset({"prefix-affinity", "prefix-cache", "token-load", "adapter-affinity"})


def _memory(engines: EngineLoads, i: int) -> float:
    tokens = engines.kv_tokens[i]
    # NaN compares false.
    return tokens if tokens > 0 else _KV_TOKENS


def _tokens(laid: Burden) -> int:
    """What will be in the endpoint's memory after the request."""
    return laid.prefill_tokens + laid.decode_tokens


def _burden(size: int, prompt: Prompt, cached: int) -> Burden:
    if not prompt.tokens:
        return burden(size, prompt.max_tokens)
    unread = prompt.tokens - cached
    return Burden(unread if unread > 0 else 0, answer_tokens(prompt.max_tokens))
