"""Placing on real counts and a real index: who has the prompt gets it, from the first request on."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec import structs

from matrixinfer.gateway.board import Claim, LoadBoard
from matrixinfer.gateway.core.load import EngineReport
from matrixinfer.gateway.core.prompt import Prompt, read_prompt
from matrixinfer.gateway.core.schedule.framework import Refused
from matrixinfer.gateway.core.schedule.rung import Rung
from matrixinfer.gateway.core.table import Pool
from matrixinfer.gateway.core.types import Endpoint, PluginWeight, Server
from matrixinfer.gateway.placing import Placement, Placer
from matrixinfer.gateway.prefixes import PrefixIndex

SYSTEM = "You know everything about our products and say so in many words. " * 60
TABLE_BYTES = 1 << 18


def chat(question: str, system: str = SYSTEM, **members: Any) -> Prompt:
    turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return read_prompt(json.dumps({"model": "m", "messages": turns, **members}).encode())


@dataclass
class World:
    """Endpoints, and one or two gateway workers that send to them."""

    board: LoadBoard
    prefixes: list[PrefixIndex]
    pool: Pool
    claims: list[Claim] = field(default_factory=list)
    sent: int = 0

    def placer(self, worker: int = 0, **changes: Any) -> Placer:
        return Placer(self.pool, self.board, self.prefixes[worker], lambda: 1000.0, **changes)

    def place(self, prompt: Prompt, worker: int = 0, *, placer: Placer | None = None, **more: Any) -> Placement:
        self.sent += 1
        placed = (placer or self.placer(worker)).place(f"r{self.sent}", prompt, len(prompt.text), model="m", **more)
        assert not isinstance(placed, Refused)
        return placed

    def send(self, prompt: Prompt, worker: int = 0, **more: Any) -> str:
        placed = self.place(prompt, worker, **more)
        self.claims.append(self.board.row(worker).enter(placed.endpoint.slot, placed.burden))
        return placed.endpoint.pod

    def finish(self) -> None:
        for claim in self.claims:
            claim.end()
        self.claims.clear()


def world_of(count: int, *plugins: str) -> Iterator[World]:
    endpoints = tuple(Endpoint(i, f"p{i}", f"u{i}", "10.0.0.1", 8000 + i, mark=i + 7) for i in range(count))
    server = Server("ns", "s", "engine-name", "vLLM", endpoints, plugins=tuple(map(PluginWeight, plugins)))
    board_fd = LoadBoard.create(2, count)
    prefix_fd = PrefixIndex.create(workers=2, capacity=count, table_bytes=TABLE_BYTES)
    indices = [PrefixIndex(prefix_fd, worker=i, workers=2, capacity=count, table_bytes=TABLE_BYTES) for i in range(2)]
    yield World(LoadBoard(board_fd, 2, count), indices, Pool.of(server))
    os.close(board_fd)
    os.close(prefix_fd)


@pytest.fixture
def world() -> Iterator[World]:
    yield from world_of(8)


def test_a_conversation_stays_where_it_began(world: World) -> None:
    first = world.send(chat("one"))
    world.finish()
    assert {world.send(chat("one" + "more " * turn)) for turn in range(20) if not world.finish()} == {first}


def test_simultaneous_requests_with_one_prompt_share_few_pods(world: World) -> None:
    """BEAT-43: none is answered yet; noted at completion only, all of them would be read on pods of their own."""
    for load in range(8):
        # Others work too, so that one pod more for this prompt is not the only way to balance.
        for i in range(4):
            world.send(chat(f"{load} {i}", system=f"{load} other {i} " * 400))
    pods = Counter(world.send(chat(f"question {i}")) for i in range(8))
    assert len(pods) <= 2


def test_what_one_worker_sent_the_other_follows(world: World) -> None:
    """BEAT-51, within a gateway: workers share what they know."""
    first = world.send(chat("one"), worker=0)
    world.finish()
    assert world.send(chat("two"), worker=1) == first


def test_tools_are_found_again(world: World) -> None:
    """BEAT-11."""
    tools = [{"type": "function", "function": {"name": f"f{i}", "description": "does this " * 20}} for i in range(9)]
    pods = set()
    for i in range(10):
        pods.add(world.send(chat("q", system=f"{i}", tools=tools)))
        world.finish()
    assert len(pods) == 1


def test_a_hot_prompt_spills_to_others(world: World) -> None:
    """BEAT-54: 160 at once with one prompt of 1000 tokens; nobody has much more than the mean."""
    pods = Counter(world.send(chat(f"question {i}")) for i in range(160))
    assert max(pods.values()) <= 2 * 160 / 8


def test_a_failed_dispatch_leaves_no_trace(world: World) -> None:
    """BEAT-43: undone, so that the prompt does not lead to a pod that never got it."""
    placed = world.place(chat("one"))
    placed.undo()
    assert world.prefixes[0].now(placed.endpoint.slot) == 0
    assert not world.place(chat("one")).view.cached_tokens


def test_a_failed_dispatch_takes_from_nobody_what_it_was_placed_by(world: World) -> None:
    """The second one was sent after the first, by what the first would have brought, and got there."""
    first, second = world.place(chat("one")), world.place(chat("one"), worker=1)
    assert first.endpoint == second.endpoint
    first.undo()
    assert world.place(chat("one")).view.cached_tokens


@pytest.mark.parametrize("system", [SYSTEM, ""])
def test_a_failed_dispatch_leaves_no_adapter_behind(world: World, system: str) -> None:
    """Else the adapter's next requests go to a pod that never loaded it."""
    world.place(chat("one", system=system), adapter="lora").undo()
    assert world.place(chat("one", system=system), adapter="lora").view.adapter_at == frozenset()


def test_a_failed_dispatch_leaves_an_adapter_that_was_there_before_or_that_another_relies_on(world: World) -> None:
    home = world.place(chat("one"), adapter="lora").endpoint.slot
    world.place(chat("two"), adapter="lora").undo()
    assert world.place(chat("three"), adapter="lora").view.adapter_at == {home}
    first = world.place(chat("one"), adapter="other")
    second = world.place(chat("two"), adapter="other", worker=1)
    assert first.endpoint == second.endpoint
    first.undo()
    assert world.place(chat("one"), adapter="other").view.adapter_at == {first.endpoint.slot}


def test_what_is_noted_between_a_dispatch_and_its_failure_is_not_taken_for_old(world: World) -> None:
    first = world.place(chat("one", system="a" * 40_000))
    slot, mark = first.endpoint.slot, first.endpoint.mark
    world.prefixes[1].note([1 << 60], mark, slot)
    first.undo()
    assert world.prefixes[0].find([1 << 60], {mark: slot}).holdings == {mark: (1, 0)}


def test_tenants_do_not_see_each_other(world: World) -> None:
    world.send(chat("one"), tenant="a")
    assert not world.place(chat("one"), tenant="b").view.cached_tokens
    assert world.place(chat("one"), tenant="a").view.cached_tokens


def test_clients_names_for_one_model_share(world: World) -> None:
    """BEAT-57: what counts is the engine's name."""
    placer = world.placer()
    placer.place("r1", chat("one"), 100, model="alias")
    placed = placer.place("r2", chat("one"), 100, model="other-alias")
    assert isinstance(placed, Placement)
    assert placed.view.cached_tokens


def test_what_the_engine_must_have_forgotten_is_not_believed(world: World) -> None:
    """BEAT-52: its memory holds so many tokens, and it got more than that since."""
    cells = world.board.engine_cells()
    for slot in range(8):
        cells.report(slot, EngineReport(kv_tokens=20_000.0), 999.9)
    placed = world.place(chat("one"))
    pod = placed.endpoint
    assert world.place(chat("one")).view.cached_tokens
    world.prefixes[1].advance(pod.slot, 25_000)
    assert not world.place(chat("one")).view.cached_tokens
    for slot in range(8):
        cells.report(slot, EngineReport(kv_tokens=2_000_000.0), 999.9)
    assert world.placer().place("r", chat("one"), 1, model="m") is not None


def test_the_originals_least_latency_goes_to_the_engine_that_says_it_is_quick() -> None:
    for world in world_of(3, "least-latency", "best"):
        cells = world.board.engine_cells()
        for slot, (first, each) in enumerate([(0.9, 0.05), (0.1, 0.01), (0.5, 0.03)]):
            cells.report(slot, EngineReport(ttft_seconds=first, tpot_seconds=each), 999.9)
        assert {world.send(chat(f"{i}", system=f"{i}")) for i in range(9)} == {"p1"}


def test_only_what_is_not_cached_has_to_be_read(world: World) -> None:
    first, second = world.place(chat("one")).burden, world.place(chat("two", max_tokens=10)).burden
    assert first.prefill_tokens > 900
    assert second.prefill_tokens < 200
    assert second.decode_tokens == 10


def test_an_adapter_goes_where_the_engines_say_that_it_is_loaded(world: World) -> None:
    endpoints = world.pool.server.endpoints
    told = tuple(structs.replace(e, adapters=("lora",) if e.slot in (3, 5) else ()) for e in endpoints)
    world.pool = Pool.of(structs.replace(world.pool.server, endpoints=told))
    pods = {world.send(chat("x", system=str(i)), adapter="lora") for i in range(12) if not world.finish()}
    assert len(pods) == 1
    assert pods <= {"p3", "p5"}


def test_an_adapter_that_every_engine_has_goes_where_it_was_used_last(world: World) -> None:
    told = tuple(structs.replace(e, adapters=("lora",)) for e in world.pool.server.endpoints)
    world.pool = Pool.of(structs.replace(world.pool.server, endpoints=told))
    pods = {world.send(chat("x", system=str(i)), adapter="lora") for i in range(12) if not world.finish()}
    assert len(pods) == 1


def test_an_adapter_goes_where_it_was_used(world: World) -> None:
    """BEAT-55: known from our own traffic, without asking the engines."""
    pods = {world.send(chat("x", system=str(i)), adapter="lora") for i in range(12) if not world.finish()}
    assert len(pods) == 1
    others = {world.send(chat("x", system=str(i)), adapter=f"l{i}") for i in range(40) if not world.finish()}
    assert len(others) > 3


def test_a_request_without_a_prompt_is_placed_by_load(world: World) -> None:
    pods = Counter(world.send(read_prompt(b"")) for _ in range(32))
    assert set(pods.values()) <= {3, 4, 5}


def test_with_little_time_less_is_looked_at(world: World) -> None:
    world.send(chat("one"))
    assert world.place(chat("one"), rung=Rung.SHORT_PREFIX).view.cached_tokens
    assert not world.place(chat("one"), rung=Rung.NO_PREFIX).view.cached_tokens
    assert world.place(chat("one"), rung=Rung.TWO_RANDOM).profile.name == "two-random"


def test_a_profile_that_asks_for_no_prompts_looks_at_none() -> None:
    for world in world_of(4, "least-request"):
        world.send(chat("one"))
        assert not world.place(chat("one")).view.cached_tokens


def test_mixed_lengths_balance_in_tokens(world: World) -> None:
    """BEAT-47: long and short prompts, all different; what is to be read is even, whatever the count."""
    tokens: Counter[str] = Counter()
    for i in range(200):
        prompt = chat("x", system=f"{i} " * (12_000 if i % 10 == 0 else 100))
        tokens[world.send(prompt)] += prompt.tokens
    assert max(tokens.values()) < 1.35 * sum(tokens.values()) / 8


def test_two_gateways_send_a_new_prompt_to_one_place() -> None:
    """BEAT-51: they share nothing; where a prompt belongs that neither has sent follows from the endpoints alone."""
    for one, other in zip(world_of(8), world_of(8), strict=True):
        same = 0
        for i in range(40):
            prompt = chat("q", system=f"{i} " + SYSTEM)
            same += one.send(prompt) == other.send(prompt)
            one.finish()
            other.finish()
        assert same >= 38


def test_home_is_where_nobody_has_more(world: World) -> None:
    first = world.place(chat("one"))
    assert first.view.home == first.decision.position
    assert world.place(chat("two")).view.home is None


def test_home_is_even_enough(world: World) -> None:
    """New prompts spread over all, with others in flight and without."""
    pods = Counter(world.send(chat("q", system=f"{i} " + SYSTEM)) for i in range(200))
    assert max(pods.values()) <= 1.4 * 200 / 8
