"""A source that asks peers first: pods of the namespace that have the same files, or fetch them at the same time.

Owns who brings which bytes; listing, verifying, retrying and writing are what they are without peers. Each chunk comes
from a peer that holds it; where nobody does, its owner (`core.rendezvous`, among those who fetch) takes it from the
origin and the others wait for it. So N pods that start together fetch about one model from the origin between them.

No pod can hold up another: an owner is waited for while it comes on, `patience_seconds` where it does not and
`_LONGEST_PATIENCES` times that in all; then it rests, and its chunks have other owners, in the end ourselves. A peer is
believed nothing: files come from peers only where the source, or the digest that the version recorded, vouches for
their content, and when that turns out wrong all who brought bytes of it are dropped, and it is fetched anew.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from matrixinfer.downloader.core.manifest import WORK_PREFIX, Listing, Ready, SourceFile, parse_ready
from matrixinfer.downloader.core.ranges import Part
from matrixinfer.downloader.core.rendezvous import owner, ranked
from matrixinfer.downloader.core.request import Request
from matrixinfer.downloader.core.sharing import SHARING_NAME, FileName, Held, Share, read_held, share_note
from matrixinfer.downloader.core.verify import Algorithm, Expected
from matrixinfer.downloader.errors import DownloadError, TransientError
from matrixinfer.downloader.peers.directory import Peer, Peers
from matrixinfer.downloader.sources.ranged import RangedBody, body_of
from matrixinfer.downloader.sources.source import Body, Source
from matrixinfer.downloader.wire.http import RedirectRefused, WireError
from matrixinfer.service.logging import get_logger

__all__ = ["Swarm", "SwarmLimits"]

log = get_logger("swarm")

# Nobody finds another content for a value of these; for a checksum anybody does.
_STRONG = frozenset((Algorithm.SHA256, Algorithm.SHA1, Algorithm.GIT_BLOB, Algorithm.MD5))
_LONGEST_PATIENCES = 12
_POLL_SECONDS = 0.1
# How old what a peer said may be: where we wait for it, or would go to the origin else; and where we wait for another.
_FRESH_SECONDS, _STALE_SECONDS = 0.1, 2.0
# The longest way in one request to the origin while we are alone, so that peers that come later are noticed.
_RUN_CHUNKS = 4
_MEASURED_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class SwarmLimits:
    """What counts as standing still, and as verified."""

    part_bytes: int
    patience_seconds: float = 10.0
    slowest_bytes_per_second: int = 1 << 20
    any_checksum: bool = False


@dataclass(frozen=True, slots=True)
class _Turn:
    """Which bytes come next, and who brings them: a peer, or the origin."""

    part: Part
    peer: Peer | None


class Swarm:
    """An origin, and the peers that share it."""

    def __init__(
        self,
        origin: Source,
        peers: Peers,
        request: Request,
        limits: SwarmLimits,
        *,
        took: Callable[[int], None],
        monotonic: Callable[[], float],
    ) -> None:
        """`took` is told of every byte that came from a peer."""
        self._origin = origin
        self._peers = peers
        self._request = request
        self.limits = limits
        self.took = took
        self.monotonic = monotonic
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str], tuple[float, Held | None]] = {}
        self._brought: dict[str, list[tuple[Peer, Part]]] = {}
        self._aborted = threading.Event()
        self._said = self._is_away = False

    def listing(self) -> Listing:
        """List the origin. The recorded digest vouches for what it does not, and for all where it is away."""
        self._aborted.clear()
        self._is_away = False
        # Before anything is known, so that those who start at the same time count on us.
        self._tell(())
        self._peers.look(wait=True)
        recorded = self._recorded()
        try:
            listing = self._origin.listing()
        except TransientError as exc:
            if recorded is None:
                raise
            log.warning("origin_away", reason=exc.message, action="going on with what peers have")
            self._is_away = True
            listing = Listing(recorded.resolved_revision, [SourceFile(f.path, f.size, "") for f in recorded.files])
        known = {(file.path, file.size): file.sha256 for file in recorded.files} if recorded else {}
        files = [_vouched(file, known.get((file.path, file.size), "")) for file in listing.files]
        self._tell(files)
        return Listing(listing.revision, files)

    def promise(self, file: SourceFile) -> Expected | None:
        """What the origin vouches for."""
        return self._origin.promise(file)

    def order(self, file: SourceFile, parts: Sequence[Part]) -> Sequence[Part]:
        """What others wait for first."""
        if not self._may_share(file.expected):
            return parts
        members = self._members()
        ours = {part for part in parts if owner(self._chunk(file, part.offset), members) == self._peers.own}
        return sorted(parts, key=lambda part: (part not in ours, part.offset))

    @contextmanager
    def read(self, file: SourceFile, part: Part) -> Iterator[Body]:
        """Open one range, whoever brings it."""
        promise = None
        if file.expected is None and file.size and self._peers.usable():
            # A file in one part: the answer with its bytes would tell as much.
            promise = self._origin.promise(file)
            file = replace(file, expected=promise)
        if not file.size or not self._may_share(file.expected):
            self._say_unshared(file)
            with self._origin.read(file, part) as body:
                yield body
            return
        with ExitStack() as opened:
            yield _Stitched(self, file, part, promise, opened)

    def doubt(self, file: SourceFile) -> Sequence[Part]:
        """Drop all who brought bytes of a file that turned out wrong; returns what they brought."""
        with self._lock:
            suspects = self._brought.pop(file.path, [])
        for peer, _ in suspects:
            self._peers.drop(peer, f"{file.path} is not what the source promises, and it brought bytes of it")
        return [part for _, part in suspects]

    def abort(self) -> None:
        """Wake up every thread that waits for the origin, for a peer, or for its turn."""
        self._aborted.set()
        self._peers.abort()
        self._origin.abort()

    def next_turn(self, file: SourceFile, position: int, end: int) -> _Turn:
        """Return who brings what comes next, waiting for it where somebody else is about to have it."""
        began, size = self.monotonic(), self.limits.part_bytes
        while True:
            self._peers.look()
            part = Part(position, min(end, (position // size + 1) * size) - position)
            members = self._members()
            chosen = owner(self._chunk(file, position), members)
            holders = self._holders(file, part, chosen)
            if free := [peer for peer in holders if not self._peers.is_busy(peer)]:
                return _Turn(part, min(free, key=lambda peer: peer.under_way))
            if chosen == self._peers.own and not self._is_worth_a_wait(holders, began):
                run = part.end if len(members) > 1 else min(end, part.end + (_RUN_CHUNKS - 1) * size)
                return _Turn(Part(position, run - position), None)
            awaited = members[chosen]
            if awaited is not None and self._stands_still(awaited, began):
                self._peers.failed(awaited, f"{file.path} was waited for, and it does not come on")
            if self._aborted.wait(_POLL_SECONDS):
                raise TransientError(f"{file.path}: the download was given up")

    def open_origin(self, file: SourceFile, part: Part, opened: ExitStack) -> Body:
        """Open a range of the origin."""
        if self._is_away:
            raise TransientError(f"{file.path}: the source does not answer, and no peer has these bytes now")
        return opened.enter_context(self._origin.read(file, part))

    def open_peer(self, peer: Peer, file: SourceFile, part: Part, opened: ExitStack) -> RangedBody | None:
        """Open a range of a peer; None when it has no time, or not what it said it had."""
        answer = opened.enter_context(self._peers.bytes_of(peer, f"/v1/bytes/{self._name(file).place}", part))
        if answer.status == 503:
            self._peers.busy(peer, min(answer.retry_after or 1.0, self.limits.patience_seconds))
            return None
        if answer.status != 206:
            self.failed(peer, file, f"it answered {answer.status} where it said it had the bytes")
            return None
        with self._lock:
            self._brought.setdefault(file.path, []).append((peer, part))
        return body_of(answer, file, part, f"{peer.address} ({file.path})")

    def failed(self, peer: Peer, file: SourceFile, reason: str) -> None:
        """Let a peer rest, and forget what it said of the file."""
        with self._lock:
            self._told.pop((peer.address, self._key(file)), None)
        self._peers.failed(peer, reason)

    def did_well(self, peer: Peer) -> None:
        """Note that a peer brought all of a chunk."""
        self._peers.well(peer)

    def too_slow(self, peer: Peer, count: int, seconds: float) -> None:
        """Drop a peer that others, or the origin, do better than."""
        self._peers.drop(
            peer, f"only {count} bytes came in {seconds:.1f} s; PEER_SLOWEST_BYTES_PER_SECOND sets the limit"
        )

    def _members(self) -> "dict[str, Peer | None]":
        """Those who fetch from the origin: we, and the peers that do."""
        found: dict[str, Peer | None] = {peer.address: peer for peer in self._peers.usable() if peer.fetching}
        return {**found, self._peers.own: None}

    def _holders(self, file: SourceFile, part: Part, chosen: str) -> list[Peer]:
        usable = {peer.address: peer for peer in self._peers.usable()}
        # Each of us begins with another one of those who have it.
        order = ranked(f"{self._peers.own}/{self._chunk(file, part.offset)}", usable)
        return [usable[address] for address in order if self._has(usable[address], file, part, chosen)]

    def _has(self, peer: Peer, file: SourceFile, part: Part, chosen: str) -> bool:
        place = (peer.address, self._key(file))
        with self._lock:
            at, held = self._told.get(place, (float("-inf"), None))
        fresh = _FRESH_SECONDS if chosen in (peer.address, self._peers.own) else _STALE_SECONDS
        if not (held and held.has(part)) and self.monotonic() - at >= fresh:
            text = self._peers.ask(peer, f"/v1/held/{self._name(file).place}")
            held = read_held(text) if text is not None else None
            held = held if held is not None and held.size == file.size else None
            with self._lock:
                self._told[place] = (self.monotonic(), held)
        return held is not None and held.has(part)

    def _is_worth_a_wait(self, holders: Sequence[Peer], began: float) -> bool:
        """True while those who have the bytes are only busy."""
        return bool(holders) and self.monotonic() - began < self.limits.patience_seconds

    def _stands_still(self, peer: Peer, began: float) -> bool:
        now, patience = self.monotonic(), self.limits.patience_seconds
        return now - max(began, peer.moved_at) >= patience or now - began >= _LONGEST_PATIENCES * patience

    def _say_unshared(self, file: SourceFile) -> None:
        if not self._said and file.size:
            self._said = True
            vouched = f"only {file.expected.algorithm}" if file.expected else "nothing"
            log.info("files_not_shared", file=file.path, reason=f"the source vouches for them by {vouched}")

    def _may_share(self, expected: Expected | None) -> bool:
        return expected is not None and (expected.algorithm in _STRONG or self.limits.any_checksum)

    def _recorded(self) -> Ready | None:
        """The list of files that the recorded digest stands for, from whoever has it: it proves itself."""
        digest = self._request.expected_digest
        for peer in self._peers.usable() if digest else ():
            text = self._peers.ask(peer, f"/v1/models/{digest.removeprefix('sha256:')}")
            if text and (found := parse_ready(text)) and found.digest == digest:
                return found
        return None

    def _tell(self, files: Sequence[SourceFile]) -> None:
        """Leave the note by which our own server knows what is under way."""
        if self._request.cache is None:
            return
        rows = [(self._key(file), Share(file.path, file.size, file.version, _sha256_of(file))) for file in files]
        note = Path(self._request.cache, WORK_PREFIX, self._request.origin_key, SHARING_NAME)
        growing = note.with_name(f"{SHARING_NAME}.new")
        # Without it nothing is shared; the download is what it was.
        with suppress(OSError):
            growing.write_bytes(share_note(self.limits.part_bytes, rows))
            growing.replace(note)

    def _key(self, file: SourceFile) -> str:
        return self._request.file_key(file.path, file.size, file.version)

    def _name(self, file: SourceFile) -> FileName:
        return FileName(self._request.origin_key, self._key(file), _sha256_of(file))

    def _chunk(self, file: SourceFile, position: int) -> str:
        return f"{self._key(file)}/{position // self.limits.part_bytes}"


class _Stitched:
    """The bytes of one range, in order, from whoever has them."""

    def __init__(self, swarm: Swarm, file: SourceFile, part: Part, promise: Expected | None, opened: ExitStack) -> None:
        self.promise = promise
        self._swarm = swarm
        self._file = file
        self._position, self._end = part.offset, part.end
        self._opened = opened
        self._body: Body | None = None
        self._turn = _Turn(Part(part.offset, 0), None)
        self._began = 0.0
        # The wait for somebody else is no silence of the one who reads.
        self._open()

    def readinto(self, buffer: memoryview) -> int:
        """Read on; trouble with a peer is mended here, trouble with the origin is the caller's."""
        while True:
            if self._body is None:
                self._open()
            body, turn = self._body, self._turn
            if body is None:
                continue
            if turn.peer is None:
                # At the very end the origin shows whether more comes than it should.
                count = body.readinto(
                    buffer[: turn.part.end - self._position] if self._position < self._end else buffer
                )
            else:
                count = self._from_peer(turn.peer, body, buffer)
            if not count and self._position < self._end and turn.peer is not None:
                continue
            self._position += count
            if self._position == turn.part.end and self._position < self._end:
                self._close()
            return count

    def _from_peer(self, peer: Peer, body: Body, buffer: memoryview) -> int:
        """Read from a peer; 0 when another must go on."""
        swarm, wanted = self._swarm, self._turn.part.end - self._position
        if not wanted:
            return 0
        try:
            count = body.readinto(buffer[:wanted])
        except DownloadError as exc:
            count, reason = 0, exc.message
        else:
            reason = "it broke off"
        if not count:
            swarm.failed(peer, self._file, reason)
            self._close()
            return 0
        swarm.took(count)
        done, seconds = self._position + count - self._turn.part.offset, swarm.monotonic() - self._began
        if seconds >= _MEASURED_SECONDS and done < seconds * swarm.limits.slowest_bytes_per_second:
            swarm.too_slow(peer, done, seconds)
            self._close()
        elif count == wanted:
            swarm.did_well(peer)
        return count

    def _open(self) -> None:
        self._close()
        turn = self._swarm.next_turn(self._file, self._position, self._end)
        self._turn, self._began = turn, self._swarm.monotonic()
        if turn.peer is None:
            self._body = self._swarm.open_origin(self._file, turn.part, self._opened)
            return
        try:
            self._body = self._swarm.open_peer(turn.peer, self._file, turn.part, self._opened)
        except (WireError, RedirectRefused, DownloadError) as exc:
            self._swarm.failed(turn.peer, self._file, str(exc))

    def _close(self) -> None:
        self._body = None
        self._opened.close()


def _vouched(file: SourceFile, sha256: str) -> SourceFile:
    """The file as the recorded digest has it, where the source itself says nothing."""
    return replace(file, expected=Expected(Algorithm.SHA256, sha256)) if sha256 and file.expected is None else file


def _sha256_of(file: SourceFile) -> str:
    expected = file.expected
    whole = expected is not None and expected.algorithm is Algorithm.SHA256 and not expected.part_bytes
    return expected.value if expected is not None and whole else ""
