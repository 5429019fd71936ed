"""The report to a ModelVersion on a real API server, with the token and the rights that an engine pod gives it."""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.integration.downloader_forks import Fork

from matrixinfer.devcluster import ControlPlane, repository
from matrixinfer.devcluster.controlplane import wait_for
from matrixinfer.downloader.core.report import Report
from matrixinfer.downloader.report import FIELD_MANAGER, StatusReporter, kubeconfig_of_token
from matrixinfer.kube.client import Client
from matrixinfer.kube.resource import Key

MODEL = {"config.json": b"{}", "w.gguf": random.Random(5).randbytes(200_000)}
DIGEST = "sha256:" + "ab" * 32

RESOLVED = Report(pod="p-0", revision="c0ffee", total_bytes=200, file_count=2, done_bytes=50)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    for name, content in MODEL.items():
        (tmp_path / "source" / name).write_bytes(content)
    return tmp_path / "source"


@pytest.fixture
def account(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Path:
    """The folder that the pod mounts: token, CA and namespace of an account with the shipped role."""
    name = "matrixinfer-downloader"
    meta = {"name": name, "namespace": namespace}
    control_plane.apply(repository() / "deploy" / "base" / "downloader")
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": meta,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }
    control_plane.apply([{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}, binding])
    wait_for("the rights", lambda: may_report(control_plane, namespace), 20)
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    token = control_plane.api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", request)
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text(str(token["status"]["token"]) + "\n")
    (folder / "namespace").write_text(namespace)
    (folder / "ca.crt").write_bytes((control_plane.place.pki / "ca.crt").read_bytes())
    return folder


def may_report(control_plane: ControlPlane, namespace: str) -> bool:
    """Whether the account may write a status by now: the API server hears of a binding by a watch of its own."""
    where = {"group": "registry.matrixinfer.ai", "resource": "modelversions", "subresource": "status", "name": "v"}
    user = f"system:serviceaccount:{namespace}:matrixinfer-downloader"
    spec = {"user": user, "resourceAttributes": {"namespace": namespace, "verb": "patch", **where}}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    answer = control_plane.api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


@pytest.fixture
def version(control_plane: ControlPlane, namespace: str, source: Path) -> Callable[[], dict[str, Any]]:
    """A ModelVersion `v`; call to read it."""
    spec = {
        "modelName": "m",
        "backendName": "b",
        "servedName": "m",
        "type": "LlamaCpp",
        "modelURI": f"file://{source}",
        "workers": [{"type": "server", "image": "x"}],
    }
    manifest = {
        "apiVersion": "registry.matrixinfer.ai/v1alpha1",
        "kind": "ModelVersion",
        "metadata": {"name": "v", "namespace": namespace},
        "spec": spec,
    }
    control_plane.apply([manifest])
    path = f"/apis/registry.matrixinfer.ai/v1alpha1/namespaces/{namespace}/modelversions/v"
    return lambda: dict(control_plane.api.get(path))


def download(
    control_plane: ControlPlane, account: Path, source: str, output: Path, *arguments: str, **environ: str
) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    server = urlsplit(control_plane.base_url)
    termination = account.parent / f"{output.name}.termination"
    kept = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    defaults = {
        "KUBERNETES_SERVICE_HOST": str(server.hostname),
        "KUBERNETES_SERVICE_PORT": str(server.port),
        "MATRIXINFER_DOWNLOADER_SERVICE_ACCOUNT_DIR": str(account),
        "MATRIXINFER_DOWNLOADER_ADMIN_HOST": "127.0.0.1",
        "MATRIXINFER_DOWNLOADER_ADMIN_PORT": "0",
        "MATRIXINFER_DOWNLOADER_RESERVE_BYTES": "0",
        "MATRIXINFER_DOWNLOADER_TERMINATION_LOG": str(termination),
        "POD_NAME": "engine-0",
    }
    wanted = ["fetch", "--source", source, "--output", str(output), "--model-version", "v", *arguments]
    fork = Fork(wanted, {**kept, **defaults, **environ})
    lines = [json.loads(line) for line in fork.output.read().splitlines()]
    return fork.end(), json.loads(termination.read_bytes()), lines


def condition(version: dict[str, Any], type_: str) -> dict[str, Any]:
    (found,) = [c for c in version["status"]["conditions"] if c["type"] == type_]
    return dict(found)


def test_a_finished_download_is_in_the_status(
    control_plane: ControlPlane, account: Path, version: Callable[[], dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    code, message, _ = download(control_plane, account, f"file://{source}", tmp_path / "out")
    assert code == 0
    found = version()
    status = found["status"]
    assert status["digest"] == message["digest"] == json.loads((tmp_path / "out" / "READY").read_bytes())["digest"]
    assert status["shortDigest"] == status["digest"][7:19]
    assert (status["totalBytes"], status["fileCount"]) == (200_002, 2)
    assert status["progress"] == {"bytes": 200_002, "percent": 100, "bytesPerSecond": 0}
    assert condition(found, "Resolved")["status"] == "True"
    assert condition(found, "Available")["status"] == "True"
    assert condition(found, "Available")["observedGeneration"] == found["metadata"]["generation"]
    managers = {
        entry["manager"] for entry in found["metadata"]["managedFields"] if entry.get("subresource") == "status"
    }
    assert managers == {FIELD_MANAGER}


def test_a_failure_is_in_the_status_and_a_later_success_mends_it(
    control_plane: ControlPlane, account: Path, version: Callable[[], dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    code, _, _ = download(control_plane, account, f"file://{source}/nothing", tmp_path / "out")
    assert code == 11
    assert condition(version(), "Resolved")["reason"] == "NotFound"
    assert "does not exist" in condition(version(), "Available")["message"]
    assert download(control_plane, account, f"file://{source}", tmp_path / "out")[0] == 0
    assert condition(version(), "Available")["status"] == "True"


def test_what_came_of_it_is_told_by_events(
    control_plane: ControlPlane,
    account: Path,
    version: Callable[[], dict[str, Any]],
    namespace: str,
    source: Path,
    tmp_path: Path,
) -> None:
    download(control_plane, account, f"file://{source}/nothing", tmp_path / "out")
    download(control_plane, account, f"file://{source}", tmp_path / "out")
    events = control_plane.api.get(f"/api/v1/namespaces/{namespace}/events")["items"]
    mine = [event for event in events if event["involvedObject"].get("uid") == version()["metadata"]["uid"]]
    assert sorted((event["type"], event["reason"]) for event in mine) == [
        ("Normal", "Downloaded"),
        ("Warning", "NotFound"),
    ]


def test_links_of_versions_that_exist_no_more_are_removed(
    control_plane: ControlPlane,
    account: Path,
    version: Callable[[], dict[str, Any]],
    namespace: str,
    source: Path,
    tmp_path: Path,
) -> None:
    links = tmp_path / "cache" / "versions" / namespace
    (links / "gone").mkdir(parents=True)
    (links / "gone" / "model").symlink_to("../../../models/x")
    arguments = ("--cache", str(tmp_path / "cache"), "--namespace", namespace)
    code, _, _ = download(control_plane, account, f"file://{source}", links / "v" / "model", *arguments)
    assert (code, sorted(entry.name for entry in links.iterdir())) == (0, ["v"])
    assert condition(version(), "Available")["status"] == "True"


def test_a_version_keeps_its_digest_and_other_content_is_not_published(
    control_plane: ControlPlane, account: Path, version: Callable[[], dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    download(control_plane, account, f"file://{source}", tmp_path / "first")
    recorded = version()["status"]["digest"]
    (source / "config.json").write_text('{"changed": 1}')
    code, message, _ = download(control_plane, account, f"file://{source}", tmp_path / "second")
    assert (code, message["cause"]) == (13, "SourceChanged")
    assert recorded in message["message"]
    assert not (tmp_path / "second" / "READY").exists()
    assert version()["status"]["digest"] == recorded
    assert condition(version(), "Available")["status"] == "True"


def test_without_rights_the_model_comes_all_the_same(
    control_plane: ControlPlane,
    account: Path,
    version: Callable[[], dict[str, Any]],
    namespace: str,
    source: Path,
    tmp_path: Path,
) -> None:
    control_plane.api.delete(
        f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings/matrixinfer-downloader"
    )
    wait_for("the end of the rights", lambda: not may_report(control_plane, namespace), 20)
    code, _, lines = download(control_plane, account, f"file://{source}", tmp_path / "out")
    assert code == 0
    (failed,) = [line for line in lines if line["event"] == "report_failed"]
    assert failed["gives_up"] is True
    assert "status" not in version()


def test_without_an_api_server_the_model_comes_all_the_same(
    control_plane: ControlPlane, account: Path, source: Path, tmp_path: Path
) -> None:
    gone = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "9"}
    environ = {**gone, "MATRIXINFER_DOWNLOADER_OUTCOME_SECONDS": "2"}
    code, message, lines = download(control_plane, account, f"file://{source}", tmp_path / "out", **environ)
    assert (code, message["outcome"]) == (0, "Ready")
    (told,) = [line for line in lines if line["event"] == "outcome_not_reported"]
    assert told["seconds"] == 2


Reporters = Callable[[], Awaitable[StatusReporter]]


@pytest.fixture
async def reporter(
    control_plane: ControlPlane, account: Path, namespace: str, tmp_path: Path
) -> AsyncIterator[Reporters]:
    """Makes reporters to the version `v`, each with a connection of its own, as pods have."""
    server = urlsplit(control_plane.base_url)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(kubeconfig_of_token(account, str(server.hostname), str(server.port)))
    async with AsyncExitStack() as stack:

        async def made() -> StatusReporter:
            client = await Client.connect(kubeconfig, user_agent=FIELD_MANAGER)
            await stack.enter_async_context(client)
            return StatusReporter(client, Key(namespace, "v"), lambda: datetime.now(UTC))

        yield made


async def test_progress_is_written_and_the_same_is_not_written_twice(
    reporter: Reporters, version: Callable[[], dict[str, Any]]
) -> None:
    mine = await reporter()
    await mine.progress(RESOLVED)
    found = version()
    assert found["status"]["progress"]["percent"] == 25
    assert condition(found, "Available")["reason"] == "Downloading"
    await mine.progress(RESOLVED)
    assert version()["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"]
    assert (await mine.recorded()).revision == "c0ffee"


async def test_pods_of_one_version_never_undo_what_another_verified(
    reporter: Reporters, version: Callable[[], dict[str, Any]]
) -> None:
    pods = [await reporter() for _ in range(4)]
    done = Report(pod="p-1", revision="c0ffee", total_bytes=200, file_count=2, done_bytes=200, digest=DIGEST)
    async with asyncio.TaskGroup() as tasks:
        for step in range(5):
            for number, pod in enumerate(pods[1:]):
                report = Report(pod=f"p-{number}", total_bytes=200, file_count=2, done_bytes=step)
                tasks.create_task(pod.progress(report))
        tasks.create_task(pods[0].outcome(done, seconds=10))
    assert condition(version(), "Available")["status"] == "True"
    assert version()["status"]["digest"] == DIGEST


async def test_what_the_controller_wrote_stays(
    control_plane: ControlPlane, reporter: Reporters, version: Callable[[], dict[str, Any]], namespace: str
) -> None:
    path = f"/apis/registry.matrixinfer.ai/v1alpha1/namespaces/{namespace}/modelversions/v/status"
    active = {"type": "Active", "status": "True", "reason": "Serving", "message": "", "observedGeneration": 1}
    status = {"modelInferName": "m-b", "conditions": [{**active, "lastTransitionTime": "2026-11-24T00:00:00Z"}]}
    manifest = {**{k: version()[k] for k in ("apiVersion", "kind")}, "metadata": {"name": "v"}, "status": status}
    control_plane.api.apply(path, manifest, manager="matrixinfer-model-controller")
    mine = await reporter()
    await mine.progress(RESOLVED)
    assert version()["status"]["modelInferName"] == "m-b"
    assert {c["type"] for c in version()["status"]["conditions"]} == {"Active", "Resolved", "Available"}


async def test_a_version_that_is_gone_is_not_asked_for_again(reporter: Reporters) -> None:
    mine = await reporter()
    async with asyncio.timeout(30):
        await mine.outcome(RESOLVED, seconds=60)
