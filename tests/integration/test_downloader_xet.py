"""Files that a hub keeps in Xet, by the way that it offers to every client: a bridge, at addresses that expire."""

import threading
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.integration.downloader_hub import COMMIT, WEIGHTS, Hub, HubHandler
from tests.integration.test_downloader_hub import LIMITS, TOKEN, failed, fetched, hub

from matrixinfer.downloader.core.redirects import DEFAULT_HOSTS, may_redirect
from matrixinfer.downloader.errors import Cause

# A fixture is used by its name alone.
__all__ = ["hub"]


class Bridge:
    """Signs an address for each file that is asked for; a signature is good for so many requests, then 403."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.uses = 1_000_000
        self.refusal = HTTPStatus.FORBIDDEN
        self.left: list[int] = []
        self.cut: int | None = None
        self._lock = threading.Lock()
        hub.faults["/org/tiny/resolve/"] = self.resolve
        hub.faults["/storage/"] = self.serve

    def resolve(self, handler: HubHandler, path: str) -> bool:
        """Lead to the bridge, with all that a client of Xet would need as well."""
        if not path.endswith(".safetensors") or (self.hub.token and not handler.headers.get("Authorization")):
            return False
        with self._lock:
            self.left.append(self.uses)
            signature = len(self.left) - 1
        there = f"{self.hub.elsewhere}/storage/model.safetensors"
        here = f"{self.hub.endpoint}/api/models/org/tiny/xet-read-token/{COMMIT}"
        handler.send_head(
            HTTPStatus.FOUND,
            0,
            {
                "Location": f"{there}?X-Amz-Expires=3600&X-Amz-Signature={signature}",
                "X-Linked-Size": str(len(WEIGHTS)),
                "X-Linked-ETag": '"linked"',
                "X-Xet-Hash": "0" * 64,
                "Link": f'<{here}>; rel="xet-auth"',
            },
        )
        return True

    def serve(self, handler: HubHandler, path: str) -> bool:
        """Serve the file to who has a signature that is good."""
        signature = int(parse_qs(urlsplit(handler.path).query)["X-Amz-Signature"][0])
        with self._lock:
            self.left[signature] -= 1
            is_good = self.left[signature] >= 0
        if not is_good:
            handler.send_head(self.refusal, 0, {})
        else:
            handler.send_file(path.removeprefix("/storage/"), length=self.cut)
        return True


@pytest.fixture
def bridge(hub: Hub) -> Bridge:
    return Bridge(hub)


def arrived(output: Path) -> bool:
    return (output / "model.safetensors").read_bytes() == WEIGHTS


async def test_a_file_in_xet_arrives_through_the_bridge_and_is_verified(
    hub: Hub, bridge: Bridge, tmp_path: Path
) -> None:
    hub.token = TOKEN
    await fetched(hub, tmp_path / "m", token=TOKEN)
    assert arrived(tmp_path / "m")
    assert hub.authorized_hosts == {"127.0.0.1"}
    assert not any("xet-read-token" in path for _, path in hub.requests)


async def test_other_bytes_from_the_bridge_are_refused(hub: Hub, bridge: Bridge, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = bytes(len(WEIGHTS))
    assert (await failed(hub, tmp_path / "m")).cause is Cause.INTEGRITY


@pytest.mark.parametrize("refusal", [HTTPStatus.FORBIDDEN, HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED])
async def test_an_address_that_expires_on_the_way_is_signed_anew(
    hub: Hub, bridge: Bridge, tmp_path: Path, refusal: HTTPStatus
) -> None:
    bridge.uses, bridge.refusal, bridge.cut = 1, refusal, 70_000
    await fetched(hub, tmp_path / "m")
    assert arrived(tmp_path / "m")
    assert len(bridge.left) > 2


async def test_an_address_is_used_as_long_as_it_is_good(hub: Hub, bridge: Bridge, tmp_path: Path) -> None:
    bridge.cut = 70_000
    await fetched(hub, tmp_path / "m")
    reads = sum(path.startswith("/storage/") for _, path in hub.requests)
    assert len(bridge.left) < reads


async def test_a_bridge_that_refuses_what_the_hub_just_signed_is_not_a_lack_of_rights(
    hub: Hub, bridge: Bridge, tmp_path: Path
) -> None:
    bridge.uses = 0
    error = await failed(hub, tmp_path / "m")
    assert error.exit_code == 14
    assert "HF_TOKEN" not in error.message
    assert "Signature" not in error.message
    assert len(bridge.left) >= LIMITS.tries


HUB_HOSTS = [
    "cas-bridge.xethub.hf.co",
    "transfer.xethub.hf.co",
    "us.aws.cdn.hf.co",
    "cdn-lfs-us-1.hf.co",
    "cdn-lfs.huggingface.co",
]


@pytest.mark.parametrize("host", HUB_HOSTS)
def test_the_places_where_the_public_hub_keeps_files_are_allowed(host: str) -> None:
    assert may_redirect(DEFAULT_HOSTS, "huggingface.co", host)


@pytest.mark.parametrize("host", ["cas-bridge.xethub.hf.co.evil.test", "evilhf.co", "169.254.169.254", "xethub.com"])
def test_other_places_that_look_like_them_are_not(host: str) -> None:
    assert not may_redirect(DEFAULT_HOSTS, "huggingface.co", host)
