"""A whole download against a source in memory that may do anything wrong: READY, or a cause and no READY."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import pytest

from matrixinfer.downloader.core.manifest import Listing, Ready, SourceFile, parse_ready
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.verify import Algorithm, Expected
from matrixinfer.downloader.errors import Cause, DownloadError, TransientError
from matrixinfer.downloader.fetch import Tools, fetch
from matrixinfer.downloader.limits import Limits
from matrixinfer.downloader.progress import Phase

LIMITS = Limits(
    part_bytes=10, connections=3, tries=3, first_wait_seconds=0, longest_wait_seconds=0.001, reserve_bytes=0
)
MODEL = {"config.json": b"{}", "sub/w.safetensors": bytes(range(95)), "empty": b""}

Fault = Callable[[str, Part, int], bytes | DownloadError | None]


class MemorySource:
    """Files in memory; `fault` may answer a read instead of them, `reads` counts what was asked for."""

    def __init__(self, files: dict[str, bytes], fault: Fault = lambda *_: None, *, vouches: bool = True) -> None:
        self.files = dict(files)
        self.fault = fault
        self.vouches = vouches
        self.answers_vouch = False
        """True when the answers promise what the listing did not."""
        self.at: Callable[[str, int], None] = lambda *_: None
        """Told of every piece before it is given: the path and where in the file."""
        self.reads: list[tuple[str, Part]] = []
        self.listings = 0
        self._lock = threading.Lock()

    def listing(self) -> Listing:
        self.listings += 1
        return Listing("rev-1", tuple(self._entry(path, content) for path, content in self.files.items()))

    @contextmanager
    def read(self, file: SourceFile, part: Part) -> Iterator["MemoryBody"]:
        with self._lock:
            self.reads.append((file.path, part))
            nth = sum(path == file.path for path, _ in self.reads)
        answer = self.fault(file.path, part, nth)
        if isinstance(answer, DownloadError):
            raise answer
        content = self.files[file.path][part.offset : part.end] if answer is None else answer
        body = MemoryBody(content, part.offset, lambda position: self.at(file.path, position))
        if self.answers_vouch:
            body.promise = Expected(Algorithm.SHA256, hashlib.sha256(self.files[file.path]).hexdigest())
        yield body

    def promise(self, file: SourceFile) -> Expected | None:
        return file.expected

    def abort(self) -> None:
        """Nobody waits for memory."""

    @property
    def read_bytes(self) -> int:
        return sum(part.length for _, part in self.reads)

    def _entry(self, path: str, content: bytes) -> SourceFile:
        sha256 = hashlib.sha256(content).hexdigest()
        promise = Expected(Algorithm.SHA256, sha256) if self.vouches else None
        return SourceFile(path, len(content), sha256, promise)


class MemoryBody:
    """Content that comes in pieces of seven bytes."""

    def __init__(self, content: bytes, position: int, at: Callable[[int], None]) -> None:
        self.promise: Expected | None = None
        self._left = memoryview(content)
        self._position = position
        self._at = at

    def readinto(self, buffer: memoryview) -> int:
        self._at(self._position)
        count = min(7, len(self._left), len(buffer))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        self._position += count
        return count


def tools() -> Tools:
    return Tools(pod="p-0", now=lambda: datetime(2026, 11, 24, tzinfo=UTC), monotonic=monotonic)


def request(output: Path, **changes: object) -> Request:
    return Request(source="s3://bucket/model", output=output, **changes)


def denied_from(position: int) -> Callable[[str, int], None]:
    """The store's keys expire in the middle of a file."""

    def at(_path: str, reached: int) -> None:
        if reached >= position:
            raise DownloadError(Cause.ACCESS_DENIED, "expired")

    return at


async def fetched(output: Path, source: MemorySource, limits: Limits = LIMITS, **changes: object) -> Ready:
    return await fetch(request(output, **changes), lambda: source, limits, tools())


async def failed(output: Path, source: MemorySource, limits: Limits = LIMITS, **changes: object) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        await fetched(output, source, limits, **changes)
    assert not (output / "READY").exists()
    return caught.value


def content(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name != "READY"
    }


async def test_every_file_arrives_and_ready_names_them_all(tmp_path: Path) -> None:
    ready = await fetched(tmp_path / "m", MemorySource(MODEL))
    assert content(tmp_path / "m") == MODEL
    assert parse_ready((tmp_path / "m" / "READY").read_bytes()) == ready
    assert {f.path: f.sha256 for f in ready.files} == {p: hashlib.sha256(c).hexdigest() for p, c in MODEL.items()}


async def test_the_digest_is_the_same_for_the_same_content_from_anywhere(tmp_path: Path) -> None:
    one = await fetched(tmp_path / "a", MemorySource(MODEL))
    other = await fetched(tmp_path / "b", MemorySource(MODEL, vouches=False), include=("*",))
    assert one.digest == other.digest


async def test_what_is_published_is_not_fetched_or_even_asked_for_again(tmp_path: Path) -> None:
    first = await fetched(tmp_path / "m", MemorySource(MODEL))
    source = MemorySource({})
    assert await fetched(tmp_path / "m", source) == first
    assert (source.listings, source.reads) == (0, [])


async def test_another_selection_of_the_same_source_is_another_publication(tmp_path: Path) -> None:
    await fetched(tmp_path / "m", MemorySource(MODEL))
    await fetched(tmp_path / "m", MemorySource(MODEL), include=("*.json",))
    assert content(tmp_path / "m") == {"config.json": b"{}"}


async def test_a_damaged_publication_is_made_good(tmp_path: Path) -> None:
    await fetched(tmp_path / "m", MemorySource(MODEL))
    (tmp_path / "m" / "config.json").unlink()
    await fetched(tmp_path / "m", MemorySource(MODEL))
    assert content(tmp_path / "m") == MODEL


async def test_bytes_of_a_failed_run_are_not_fetched_again(tmp_path: Path) -> None:
    source = MemorySource(MODEL)
    source.at = denied_from(60)
    await failed(tmp_path / "m", source, Limits(**_limits(connections=1)))
    second = MemorySource(MODEL)
    await fetched(tmp_path / "m", second)
    assert content(tmp_path / "m") == MODEL
    assert second.read_bytes <= sum(map(len, MODEL.values())) - 60


async def test_files_that_a_failed_run_completed_are_known_though_only_their_answers_vouched(tmp_path: Path) -> None:
    model = {"a.safetensors": bytes(30), "b.safetensors": bytes(range(20))}
    cached = {"cache": tmp_path / "cache"}
    source = MemorySource(model, vouches=False)
    source.answers_vouch = True
    source.at = lambda path, position: denied_from(0)(path, position) if path.startswith("b") else None
    await failed(tmp_path / "m", source, Limits(**_limits(connections=1)), **cached)
    second = MemorySource(model, vouches=False)
    await fetched(tmp_path / "m", second, **cached)
    assert {path for path, _ in second.reads} == {"b.safetensors"}


async def test_a_connection_that_breaks_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    def cut(path: str, part: Part, nth: int) -> bytes | None:
        return MODEL[path][part.offset : part.offset + 3] if part.length > 3 else None

    source = MemorySource(MODEL, cut)
    await fetched(tmp_path / "m", source)
    assert content(tmp_path / "m") == MODEL


async def test_passing_trouble_is_waited_out(tmp_path: Path) -> None:
    progress = tools()
    source = MemorySource(MODEL, lambda _path, _part, nth: TransientError("busy") if nth <= 2 else None)
    await fetch(request(tmp_path / "m"), lambda: source, LIMITS, progress)
    assert progress.progress.view().retries >= 2
    assert content(tmp_path / "m") == MODEL


async def test_trouble_that_does_not_pass_ends_it_as_unreachable(tmp_path: Path) -> None:
    error = await failed(tmp_path / "m", MemorySource(MODEL, lambda *_: TransientError("busy")))
    assert error.cause is Cause.UNREACHABLE
    assert "given up after 3 tries" in error.message


async def test_a_body_that_always_ends_early_ends_it_as_unreachable(tmp_path: Path) -> None:
    error = await failed(tmp_path / "m", MemorySource(MODEL, lambda *_: b""))
    assert error.exit_code == 14


async def test_wrong_bytes_of_the_right_size_are_never_published(tmp_path: Path) -> None:
    error = await failed(tmp_path / "m", MemorySource(MODEL, lambda _path, part, _nth: b"\xff" * part.length))
    assert error.cause is Cause.INTEGRITY
    assert "config.json" in error.message or "w.safetensors" in error.message


async def test_wrong_bytes_are_not_kept_for_the_next_run(tmp_path: Path) -> None:
    await failed(tmp_path / "m", MemorySource(MODEL, lambda _path, part, _nth: b"\xff" * part.length))
    await fetched(tmp_path / "m", MemorySource(MODEL))
    assert content(tmp_path / "m") == MODEL


async def test_more_bytes_than_listed_are_refused(tmp_path: Path) -> None:
    error = await failed(tmp_path / "m", MemorySource(MODEL, lambda _path, part, _nth: b"\0" * (part.length + 1)))
    assert error.cause is Cause.INTEGRITY


async def test_a_source_that_changes_meanwhile_is_listed_again(tmp_path: Path) -> None:
    source = MemorySource(MODEL)
    changed = {**MODEL, "config.json": b'{"new": 1}'}

    def moved(path: str, _part: Part, nth: int) -> DownloadError | None:
        if path == "config.json" and source.files != changed:
            source.files = changed
            return DownloadError(Cause.SOURCE_CHANGED, "another etag")
        return None

    source.fault = moved
    await fetched(tmp_path / "m", source)
    assert content(tmp_path / "m") == changed
    assert source.listings == 2


async def test_a_source_that_keeps_changing_is_given_up(tmp_path: Path) -> None:
    source = MemorySource(MODEL, lambda *_: DownloadError(Cause.SOURCE_CHANGED, "another etag"))
    assert (await failed(tmp_path / "m", source)).cause is Cause.SOURCE_CHANGED
    assert source.listings == 3


async def test_another_digest_than_the_version_recorded_is_not_published(tmp_path: Path) -> None:
    error = await failed(tmp_path / "m", MemorySource(MODEL), expected_digest="sha256:" + "0" * 64)
    assert error.cause is Cause.SOURCE_CHANGED
    assert "sha256:000" in error.message


async def test_another_state_that_is_published_gives_way_to_the_recorded_one(tmp_path: Path) -> None:
    old = {**MODEL, "config.json": b"[]"}
    recorded = (await fetched(tmp_path / "elsewhere", MemorySource(MODEL))).digest
    await fetched(tmp_path / "m", MemorySource(old))
    assert (await fetched(tmp_path / "m", MemorySource(MODEL), expected_digest=recorded)).digest == recorded
    assert content(tmp_path / "m") == MODEL


async def test_what_is_published_stays_when_the_recorded_state_cannot_be_had(tmp_path: Path) -> None:
    first = await fetched(tmp_path / "m", MemorySource(MODEL))
    with pytest.raises(DownloadError):
        await fetched(tmp_path / "m", MemorySource(MODEL), expected_digest="sha256:" + "0" * 64)
    assert parse_ready((tmp_path / "m" / "READY").read_bytes()) == first


async def test_the_recorded_digest_is_accepted(tmp_path: Path) -> None:
    digest = (await fetched(tmp_path / "a", MemorySource(MODEL))).digest
    assert (await fetched(tmp_path / "b", MemorySource(MODEL), expected_digest=digest)).digest == digest


async def test_a_volume_that_is_too_small_is_found_out_before_the_first_byte(tmp_path: Path) -> None:
    source = MemorySource(MODEL)
    error = await failed(tmp_path / "m", source, Limits(**_limits(reserve_bytes=1 << 60)))
    assert error.cause is Cause.NO_SPACE
    assert source.reads == []


async def test_names_that_leave_the_folder_are_refused_before_the_first_byte(tmp_path: Path) -> None:
    source = MemorySource({**MODEL, "../evil": b"x"})
    assert (await failed(tmp_path / "m", source)).cause is Cause.UNSAFE_PATH
    assert source.reads == []
    assert not (tmp_path / "evil").exists()


async def test_an_empty_source_is_not_success(tmp_path: Path) -> None:
    assert (await failed(tmp_path / "m", MemorySource({}))).exit_code == 11


async def test_a_source_that_never_lists_has_a_deadline(tmp_path: Path) -> None:
    class Silent(MemorySource):
        def listing(self) -> Listing:
            threading.Event().wait(0.1)
            return super().listing()

    error = await failed(tmp_path / "m", Silent(MODEL), Limits(**_limits(listing_seconds=0.01)))
    assert error.exit_code == 14


async def test_the_first_cause_is_told_not_its_consequences(tmp_path: Path) -> None:
    source = MemorySource(MODEL)
    source.at = denied_from(30)
    assert (await failed(tmp_path / "m", source)).cause is Cause.ACCESS_DENIED


async def test_damage_to_resumed_bytes_costs_one_more_fetch_not_the_download(tmp_path: Path) -> None:
    def wrong_head(path: str, part: Part, _nth: int) -> bytes | None:
        good = MODEL[path][part.offset : part.end]
        return b"\xee" * 10 + good[10:] if path.endswith("w.safetensors") and part.offset == 0 else None

    source = MemorySource(MODEL, wrong_head)
    source.at = denied_from(60)
    await failed(tmp_path / "m", source, Limits(**_limits(connections=1)))
    second = MemorySource(MODEL)
    await fetched(tmp_path / "m", second)
    assert content(tmp_path / "m") == MODEL


async def test_being_told_to_stop_is_its_own_cause_and_keeps_the_bytes(tmp_path: Path) -> None:
    mine = tools()

    source = MemorySource(MODEL)
    source.at = lambda _path, position: mine.stop.set() if position >= 60 else None
    with pytest.raises(DownloadError) as caught:
        await fetch(request(tmp_path / "m"), lambda: source, Limits(**_limits(connections=1)), mine)
    assert caught.value.exit_code == 16
    second = MemorySource(MODEL)
    await fetched(tmp_path / "m", second)
    assert second.read_bytes < sum(map(len, MODEL.values()))


async def test_the_board_tells_the_story(tmp_path: Path) -> None:
    mine = tools()
    await fetch(request(tmp_path / "m"), lambda: MemorySource(MODEL), LIMITS, mine)
    view = mine.progress.view()
    assert (view.phase, view.percent, view.done_files, view.revision) == (Phase.READY, 100, 3, "rev-1")
    assert view.done_bytes == view.total_bytes == view.fetched_bytes


def _limits(**changes: object) -> dict[str, object]:
    return {name: getattr(LIMITS, name) for name in LIMITS.__dataclass_fields__} | changes


@pytest.mark.parametrize("may_read", [True, False])
async def test_room_is_made_only_for_a_source_that_may_be_read(tmp_path: Path, may_read: bool) -> None:
    loose = tmp_path / "blobs" / ("0" * 64)
    loose.parent.mkdir()
    loose.write_bytes(b"of no model")
    source = MemorySource(MODEL, lambda *_: None if may_read else DownloadError(Cause.ACCESS_DENIED, "no"))
    with suppress(DownloadError):
        await fetched(tmp_path / "m", source, replace(LIMITS, high_water_percent=1), cache=tmp_path)
    assert (tmp_path / "m" / "READY").exists() == may_read
    assert loose.exists() != may_read
