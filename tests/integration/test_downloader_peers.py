"""Nodes with a volume each bring a model over the line to the origin about once, whoever dies, lies or dawdles."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.downloader_nodes import FILES, PART_BYTES, TOKEN, TOTAL, FalsePeer, Node, Origin, running

from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.uri import WebFolder
from matrixinfer.downloader.errors import TransientError
from matrixinfer.downloader.fetch import Tools, fetch
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.peers.directory import PeerAccess, Peers
from matrixinfer.downloader.peers.swarm import Swarm, SwarmLimits
from matrixinfer.downloader.sources.web import WebAccess
from matrixinfer.downloader.sources.website import WebsiteSource
from matrixinfer.downloader.workspace import prepare_cache

LIMITS = Limits(part_bytes=PART_BYTES, connections=3, tries=2, first_wait_seconds=0.01, longest_wait_seconds=0.01)
BUILD = Callable[..., list[Node]]


@pytest.fixture
def origin() -> Iterator[Origin]:
    made = Origin()
    with running(made):
        yield made


@pytest.fixture
def nodes(origin: Origin, tmp_path: Path) -> Iterator[BUILD]:
    """`nodes(4)`: so many nodes that serve, and know of one another."""
    made: list[Node] = []
    others: list[str] = []

    def build(count: int, *, also: tuple[str, ...] = (), **settings: str) -> list[Node]:
        others.extend(also)
        for number in range(len(made) + 1, len(made) + count + 1):
            peers = lambda: ",".join([*others, *(node.address for node in made if node.port)])  # noqa: E731
            made.append(Node(number, tmp_path / f"volume-{number}", origin, peers, settings))
        fresh = made[-count:]
        for node in fresh:
            node.serve()
        return fresh

    yield build
    for node in made:
        node.kill()


def test_nodes_that_start_together_fetch_about_one_model_between_them(nodes: BUILD, origin: Origin) -> None:
    four = nodes(4)
    origin.bytes_per_second = 50 << 10
    for node in four:
        node.fetch()
    assert [node.outcome() for node in four] == [0] * 4, four[0].log
    assert all(node.content() == FILES for node in four)
    assert origin.sent <= 1.2 * TOTAL


def test_one_that_comes_later_needs_nothing_from_the_origin(nodes: BUILD, origin: Origin) -> None:
    (first,) = nodes(1)
    first.fetch()
    assert first.outcome() == 0
    before = origin.sent
    (late,) = nodes(1)
    late.fetch()
    assert late.outcome() == 0, late.log
    assert (origin.sent, late.content()) == (before, FILES)
    assert late.events("model_ready")[0]["peer_bytes"] == TOTAL
    assert first.events("model_ready")[0]["peer_bytes"] == 0


def test_when_one_dies_midway_the_others_share_what_it_would_have_fetched(nodes: BUILD, origin: Origin) -> None:
    three = nodes(3, PEER_PATIENCE_SECONDS="2")
    origin.bytes_per_second = 200 << 10
    killed: list[int] = []

    def kill_the_first(sent: int) -> None:
        if sent > TOTAL // 3 and not killed:
            killed.append(sent)
            three[0].kill()

    origin.enough = kill_the_first
    for node in three:
        node.fetch()
    assert [node.outcome() for node in three[1:]] == [0, 0], three[1].log
    assert killed
    assert all(node.content() == FILES for node in three[1:])
    # What it had fetched, and what was on the way.
    assert origin.sent <= 1.6 * TOTAL


def test_a_peer_that_lies_is_dropped_and_nothing_it_said_stays(nodes: BUILD, origin: Origin) -> None:
    liar = FalsePeer(wrong=True)
    with running(liar):
        (node,) = nodes(1, also=(liar.address,))
        node.fetch()
        assert node.outcome() == 0, node.log
    assert liar.asked
    assert node.content() == FILES
    assert [event["peer"] for event in node.events("peer_dropped")] == [liar.address]
    assert origin.sent <= 1.2 * TOTAL


def test_a_peer_that_dawdles_is_dropped(nodes: BUILD, origin: Origin) -> None:
    dawdler = FalsePeer(bytes_per_second=5_000)
    with running(dawdler):
        (node,) = nodes(1, also=(dawdler.address,), PEER_PATIENCE_SECONDS="2")
        began = time.monotonic()
        node.fetch()
        assert node.outcome() == 0, node.log
    assert time.monotonic() - began < 30
    assert (node.content(), len(node.events("peer_dropped"))) == (FILES, 1)


def test_a_peer_that_never_comes_on_is_not_waited_for(nodes: BUILD, origin: Origin) -> None:
    idler = FalsePeer(fetching=True)
    with running(idler):
        (node,) = nodes(1, also=(idler.address,), PEER_PATIENCE_SECONDS="1")
        node.fetch()
        assert node.outcome() == 0, node.log
    assert node.content() == FILES
    assert TOTAL <= origin.sent <= 1.1 * TOTAL
    assert node.events("peer_rests")


def test_a_peer_with_another_token_is_of_no_use_and_no_harm(nodes: BUILD, origin: Origin) -> None:
    (first,) = nodes(1)
    first.fetch()
    assert first.outcome() == 0
    (other,) = nodes(1)
    other.fetch(PEER_TOKEN="the token of another namespace")
    assert other.outcome() == 0
    assert other.content() == FILES
    assert origin.sent >= 2 * TOTAL
    assert "token" in str(other.events("peer_dropped")[0]["reason"])
    assert "the token of" not in other.log


@pytest.mark.parametrize(
    "says", [b"", b"[" * 100_000, b'{"fetching": true, "count": 1e999}'], ids=["away", "deep", "inf"]
)
def test_a_peer_that_talks_nonsense_does_no_harm(nodes: BUILD, origin: Origin, says: bytes) -> None:
    fool = FalsePeer()
    fool.says = says
    with running(fool):
        (node,) = nodes(1, also=(fool.address,))
        node.fetch()
        assert node.outcome() == 0, node.log
    assert fool.asked
    assert node.content() == FILES
    assert "Traceback" not in node.log


def test_names_that_nobody_answers_to_cost_no_more_than_a_moment(nodes: BUILD, origin: Origin) -> None:
    (node,) = nodes(1, also=("127.0.1.98:9", "nobody.invalid"))
    node.fetch()
    assert node.outcome() == 0
    assert node.content() == FILES
    assert TOTAL <= origin.sent <= 1.1 * TOTAL


def test_without_peers_nobody_is_asked_and_nothing_is_told(nodes: BUILD, origin: Origin) -> None:
    (first,) = nodes(1)
    first.fetch(PEERS="")
    assert first.outcome() == 0
    assert not list(first.volume.rglob("sharing.json*"))
    assert origin.sent >= TOTAL


async def test_what_a_version_recorded_comes_from_peers_alone_while_the_origin_is_away(
    nodes: BUILD, origin: Origin, tmp_path: Path
) -> None:
    (first,) = nodes(1)
    first.fetch()
    assert first.outcome() == 0
    digest = str(first.events("model_ready")[0]["digest"])
    away = WebsiteSource(WebFolder("http://127.0.1.97:9/model"), WebAccess(connect_seconds=0.5))
    request = Request(origin.url, tmp_path / "link", expected_digest=digest, cache=tmp_path / "late")
    access = PeerAccess((first.address,), "127.0.1.50", first.port, TOKEN)
    tools = Tools(pod="late", now=lambda: datetime.now(UTC), monotonic=time.monotonic)
    source = Swarm(
        away,
        Peers(access, request.origin_key, time.monotonic, time.time),
        request,
        SwarmLimits(LIMITS.part_bytes),
        took=tools.progress.from_peer,
        monotonic=time.monotonic,
    )
    ready = await fetch(request, lambda: source, LIMITS, tools)
    assert (ready.digest, tools.progress.view().peer_bytes) == (digest, TOTAL)
    assert {path: (tmp_path / "link" / path).read_bytes() for path in FILES} == FILES


async def test_a_list_of_files_that_is_not_of_the_recorded_digest_is_not_believed(
    nodes: BUILD, origin: Origin, tmp_path: Path
) -> None:
    (first,) = nodes(1)
    first.fetch()
    assert first.outcome() == 0
    (model,) = (first.volume / "models").iterdir()
    other = first.volume / "models" / ("0" * 64)
    model.rename(other)
    away = WebsiteSource(WebFolder("http://127.0.1.97:9/model"), WebAccess(connect_seconds=0.5))
    request = Request(origin.url, tmp_path / "link", expected_digest=f"sha256:{'0' * 64}", cache=tmp_path / "late")
    access = PeerAccess((first.address,), "127.0.1.50", first.port, TOKEN)
    peers = Peers(access, request.origin_key, time.monotonic, time.time)
    source = Swarm(away, peers, request, SwarmLimits(LIMITS.part_bytes), took=lambda _: None, monotonic=time.monotonic)
    prepare_cache(tmp_path / "late", request.origin_key)
    with pytest.raises(TransientError, match=r"127\.0\.1\.97"):
        source.listing()
    assert [peer.address for peer in peers.usable()] == [first.address]
