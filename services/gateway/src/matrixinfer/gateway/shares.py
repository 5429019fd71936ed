"""What every gateway counted, told to the one that writes status, through one Lease that all of them annotate.

Gateways never call each other. A follower writes its counts of the last minute under an annotation of its own, by
server-side apply under a name of its own, so nobody overwrites anybody; the leader reads them with a watch of this one
object. The leader itself writes nothing here, and a follower without traffic writes nothing, so a
single gateway and an idle cluster cost no write. The trap: a gateway that died cannot take its counts back, so counts
that did not change for a while are left out, and in the end removed.
"""

import asyncio
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable

import msgspec

from matrixinfer.gateway.core.figures import Counts, TargetCounts
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.codec import Meta, struct
from matrixinfer.kube.errors import KubeError
from matrixinfer.kube.resource import LEASES, Json, Key, Manifest
from matrixinfer.kube.store import Store
from matrixinfer.service.logging import get_logger

__all__ = ["LEASE", "Shares", "decoded", "encoded"]

log = get_logger("shares")

LEASE = "matrixinfer-gateway-traffic"
_PREFIX = "traffic.matrixinfer.ai/"
_TELL_SECONDS = 10.0
_RENEW_SECONDS = 30.0
_STALE_SECONDS = 75.0
_GONE_SECONDS = 600.0
# All annotations of an object together have 256 KiB.
_TARGETS = 200
_UNPACKED_LIMIT_BYTES = 1 << 20


class _Lease(msgspec.Struct, frozen=True):
    metadata: Meta


_decoder = msgspec.msgpack.Decoder(dict[tuple[str, str], TargetCounts])


def encoded(counts: Counts) -> str:
    """Return counts as the text of an annotation; of very many targets, those with the most requests."""
    busiest = sorted(counts, key=lambda key: (-counts[key].requests, key))[:_TARGETS]
    packed = msgspec.msgpack.encode({key: counts[key] for key in busiest})
    return b64encode(zlib.compress(packed)).decode()


def decoded(text: str) -> Counts:
    """Return the counts that `encoded` wrote; none when that is not what the text is."""
    try:
        unpacker = zlib.decompressobj()
        packed = unpacker.decompress(b64decode(text, validate=True), _UNPACKED_LIMIT_BYTES)
        return _decoder.decode(packed)
    except (ValueError, zlib.error):
        return {}


class Shares:
    """The counts of all gateways but this one, and the telling of ours."""

    def __init__(self, client: Client, namespace: str, identity: str, clock: Callable[[], float]) -> None:
        """`identity` is the name of this gateway's pod."""
        self._client = client
        # A cache of its own: readiness waits for what routing needs, and must not wait for this.
        self._cache = Cache(client)
        self._key = Key(namespace, LEASE)
        # The name of an annotation has 63 characters at most; pods of one deployment differ at their ends.
        self._annotation = _PREFIX + identity[-63:].lstrip("-.")
        self._clock = clock
        self._store: Store[_Lease] = self._cache.watch(
            LEASES, namespace=namespace, field_selector=f"metadata.name={LEASE}", project=struct(_Lease)
        )
        self._seen: dict[str, tuple[str, float]] = {}
        self._told = ""
        self._told_at = 0.0
        self._times = 0

    def others(self) -> Iterable[Counts]:
        """Return what each of the others counted, of those that still tell."""
        now, told = self._clock(), self._annotations()
        self._seen = {
            name: before if (before := self._seen.get(name)) and before[0] == text else (text, now)
            for name, text in told.items()
        }
        return [decoded(text.partition(".")[2]) for text, since in self._seen.values() if now - since < _STALE_SECONDS]

    async def run(self, own: Callable[[], Counts], is_leading: Callable[[], bool]) -> None:
        """Watch; tell what this gateway counted while another one writes status; as the leader, remove left-overs."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._cache.run())
            while True:
                await asyncio.sleep(_TELL_SECONDS)
                try:
                    await (self.forget_gone() if is_leading() else self.tell(own()))
                except KubeError as exc:
                    # The next round says it again.
                    log.warning("share_not_told", reason=str(exc))

    async def tell(self, counts: Counts) -> None:
        """Write our counts where they changed, or the others would take us for gone."""
        text, now = encoded(counts) if counts else "", self._clock()
        if text == self._told and (not text or now - self._told_at < _RENEW_SECONDS):
            return
        # The number makes every telling another text, so that counts which stay the same are not taken for old.
        self._times += 1
        # An annotation that is left out is removed.
        annotations: dict[str, Json] = {self._annotation: f"{self._times}.{text}"} if text else {}
        manifest: Manifest = {
            "metadata": {"namespace": self._key.namespace, "name": self._key.name, "annotations": annotations}
        }
        await self._client.apply(LEASES, manifest, field_manager=self._annotation)
        self._told, self._told_at = text, now

    async def forget_gone(self) -> None:
        """Remove the counts of gateways that do not exist any more."""
        now = self._clock()
        gone = [name for name, (_, since) in self._seen.items() if now - since > _GONE_SECONDS]
        if gone:
            await self._client.merge_patch(
                LEASES,
                self._key,
                {"metadata": {"annotations": dict.fromkeys(gone)}},
                field_manager="matrixinfer-gateway",
            )

    def _annotations(self) -> dict[str, str]:
        lease = self._store.get(self._key)
        annotations = lease.metadata.annotations if lease is not None else {}
        return {n: text for n, text in annotations.items() if n.startswith(_PREFIX) and n != self._annotation}
