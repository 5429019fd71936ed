"""TLS as in a pod and as in a kubeconfig: the server's certificate is checked, ours is sent, rotation is followed."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from aiohttp import web
from kubernetes_asyncio.config import incluster_config

from matrixinfer.kube.errors import ConfigError, Unreachable
from matrixinfer.kube.transport import KubernetesCredentials, Transport


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Server:
    def __init__(self) -> None:
        self.port = 0
        self.seen: list[tuple[str, Any]] = []

    async def handle(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        self.seen.append((request.headers.get("Authorization", ""), request.transport.get_extra_info("peercert")))
        return web.json_response({})


@pytest.fixture
async def server(authority: trustme.CA) -> AsyncIterator[Server]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    found = Server()
    app = web.Application()
    app.router.add_get("/{tail:.*}", found.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    found.port = runner.addresses[0][1]
    yield found
    await runner.cleanup()


@pytest.fixture
def in_pod(server: Server, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of a pod's ServiceAccount; returns the token's path."""
    (tmp_path / "ca.crt").write_bytes(authority.cert_pem.bytes())
    (tmp_path / "token").write_text("first\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    return tmp_path / "token"


async def test_a_pod_uses_its_service_account_and_follows_the_rotation(server: Server, in_pod: Path) -> None:
    now = [0.0]
    credentials = KubernetesCredentials(None, monotonic=lambda: now[0])
    await credentials.load()
    async with Transport(credentials, user_agent="t") as transport:
        await transport.request("GET", "/a", deadline_seconds=2)
        # A few bytes of a test.
        in_pod.write_text("second\n")  # noqa: ASYNC240
        now[0] = 61.0
        await transport.request("GET", "/a", deadline_seconds=2)
    assert [authorization for authorization, _ in server.seen] == ["Bearer first", "Bearer second"]


async def test_outside_of_a_pod_the_lack_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="the pod's ServiceAccount"):
        await KubernetesCredentials(None).load()


def kubeconfig(folder: Path, port: int, ca: trustme.CA, certificate: trustme.LeafCert) -> Path:
    (folder / "ca.crt").write_bytes(ca.cert_pem.bytes())
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    (folder / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": "ca.crt"}
    user = {"client-certificate": "cert.pem", "client-key": "key.pem"}
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    (folder / "config").write_text(yaml.safe_dump(document))
    return folder / "config"


def common_names(server: Server) -> list[str]:
    subjects = (certificate["subjectAltName"] for _, certificate in server.seen)
    return [name for ((_, name),) in subjects]


async def test_a_client_certificate_is_sent_and_its_successor_used_for_new_connections(
    server: Server, authority: trustme.CA, tmp_path: Path
) -> None:
    now = [0.0]
    path = kubeconfig(tmp_path, server.port, authority, authority.issue_cert("first.example"))
    credentials = KubernetesCredentials(path, monotonic=lambda: now[0])
    await credentials.load()
    async with Transport(credentials, user_agent="t") as transport:
        await transport.request("GET", "/a", deadline_seconds=2)
        kubeconfig(tmp_path, server.port, authority, authority.issue_cert("second.example"))
        now[0] = 61.0
        await credentials.authorization()
        async with transport.stream("/b", params={}, deadline_seconds=2):
            pass
    assert common_names(server) == ["first.example", "second.example"]


async def test_a_server_that_we_do_not_trust_gets_nothing(
    server: Server, authority: trustme.CA, tmp_path: Path
) -> None:
    path = kubeconfig(tmp_path, server.port, trustme.CA(), authority.issue_cert("us.example"))
    async with await Transport.open(path, user_agent="t") as transport:
        with pytest.raises(Unreachable, match="certificate"):
            await transport.request("GET", "/a", deadline_seconds=2)
    assert server.seen == []
