"""The webhook as a real process, with the rights it ships with, called by a real API server.

The configurations are those of `deploy/base/webhook`, with two changes: webhooks are called by URL, because Services
have no endpoints on this tier, and only for the namespace of the test, because other tests share the API server.
"""

import base64
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from matrixinfer.api.v1alpha1.defaults import with_defaults
from matrixinfer.devcluster import ControlPlane
from matrixinfer.devcluster.controlplane import free_ports, wait_for
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.services import ServiceProcess

from .conftest import ServiceStarter

ROOT = Path(__file__).parents[2]
ACCOUNT = "system:serviceaccount:matrixinfer-system:webhook"
SECRET = "/api/v1/namespaces/matrixinfer-system/secrets/matrixinfer-webhook-tls"
CONFIGURATIONS = [
    f"/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations/matrixinfer"
    for kind in ("mutating", "validating")
]
GROUPS = {
    "Model": "registry.matrixinfer.ai/v1alpha1/models",
    "ModelRoute": "networking.matrixinfer.ai/v1alpha1/modelroutes",
}


def model(called: str = "m", **backend: Any) -> dict[str, Any]:
    whole = {
        "name": "b",
        "type": "vLLM",
        "modelURI": "hf://example-org/name",
        "minReplicas": 1,
        "maxReplicas": 1,
        "workers": [{"type": "server", "image": "example/engine:1"}],
        **backend,
    }
    return {
        "apiVersion": "registry.matrixinfer.ai/v1alpha1",
        "kind": "Model",
        "metadata": {"name": called},
        "spec": {"backends": [whole]},
    }


@dataclass
class Webhook:
    """The registered webhook, and an API server to write to through it."""

    plane: ControlPlane
    namespace: str
    starter: ServiceStarter

    def start(self, port: int, *, wait: bool = True, **seconds: float) -> ServiceProcess:
        env = {
            "MATRIXINFER_WEBHOOK_HOST": "127.0.0.1",
            "MATRIXINFER_WEBHOOK_PORT": str(port),
            "MATRIXINFER_WEBHOOK_EXTRA_NAMES": "127.0.0.1",
            "MATRIXINFER_WEBHOOK_CHECK_SECONDS": "0.5",
            "MATRIXINFER_WEBHOOK_LINGER_SECONDS": "0.2",
            **{f"MATRIXINFER_WEBHOOK_{name.upper()}_SECONDS": str(value) for name, value in seconds.items()},
        }
        process: ServiceProcess = self.starter("webhook", env, wait=wait)
        return process

    def register(self, port: int) -> None:
        text = (ROOT / "deploy/base/webhook/configurations.yaml").read_text()
        manifests = list(yaml.safe_load_all(text))
        for manifest in manifests:
            for hook in manifest["webhooks"]:
                path = hook["clientConfig"].pop("service")["path"]
                hook["clientConfig"]["url"] = f"https://127.0.0.1:{port}{path}"
                hook["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}}
        self.plane.apply(manifests)

    def unregister(self) -> None:
        for path in CONFIGURATIONS:
            if self.plane.api.exists(path):
                self.plane.api.delete(path)

    def trust(self) -> set[str]:
        hooks = [hook for path in CONFIGURATIONS for hook in self.plane.api.get(path)["webhooks"]]
        return {hook["clientConfig"].get("caBundle", "") for hook in hooks}

    def kubectl(self, *argv: str, manifest: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.plane.kubectl), "--kubeconfig", str(self.plane.kubeconfig), "-n", self.namespace, *argv]
        text = None if manifest is None else json.dumps(manifest)
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)

    def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        group, version, plural = GROUPS[manifest["kind"]].split("/")
        path = f"/apis/{group}/{version}/namespaces/{self.namespace}/{plural}"
        return dict(self.plane.api.create(path, dict(manifest)))

    def forbidden(self, since: float) -> list[str]:
        """What the webhook's account was refused."""
        events = self.plane.audited(ACCOUNT, since)
        return [f"{e['verb']} {e['requestURI']}" for e in events if e.get("responseStatus", {}).get("code") == 403]

    def writes(self, since: float) -> list[str]:
        events = self.plane.audited(ACCOUNT, since)
        return [f"{e['verb']} {e['requestURI']}" for e in events if e["verb"] not in ("get", "list", "watch")]


@pytest.fixture
def webhook(control_plane: ControlPlane, namespace: str, service_process: ServiceStarter) -> Iterator[Webhook]:
    made = Webhook(control_plane, namespace, service_process)
    made.unregister()
    if control_plane.api.exists(SECRET):
        control_plane.api.delete(SECRET)
    yield made
    made.unregister()


@pytest.fixture
def port() -> int:
    (found,) = free_ports(1)
    return found


def test_a_bad_object_is_refused_with_the_field_and_the_fix(webhook: Webhook, port: int) -> None:
    """Faults that the schema lets through, so that it is the webhook that speaks."""
    webhook.register(port)
    webhook.start(port)
    flags = model(workers=[{"type": "server", "image": "example/engine:1", "config": ["--flag"]}])
    long_names = model("m" * 60, name="b" * 20)
    for manifest, sentence in (
        (flags, "spec.backends[0].workers[0].config: must be an object of engine flags; write for example"),
        (long_names, "spec.backends[0].name: makes the name"),
    ):
        refused = webhook.kubectl("apply", "-f", "-", manifest=manifest)
        assert refused.returncode != 0
        assert f'The Model "{manifest["metadata"]["name"]}" is invalid: {sentence}' in refused.stderr
    with pytest.raises(ClusterError, match=r'admission webhook "default.matrixinfer.ai" denied the request: spec\.'):
        webhook.create(flags)


def test_an_object_is_stored_as_the_rules_default_it(webhook: Webhook, port: int) -> None:
    webhook.register(port)
    webhook.start(port)
    manifest = model(maxReplicas=4, scalingCost=2)
    manifest["spec"]["autoscalingPolicy"] = {"metrics": [{"metricName": "m", "targetValue": "1"}]}
    stored = webhook.create(manifest)
    assert stored["spec"] == with_defaults(manifest)["spec"]
    assert stored["spec"]["costExpansionRatePercent"] == 200
    assert stored["spec"]["backends"][0]["scaleToZeroGracePeriod"] == "30s"


def test_a_name_that_does_not_exist_yet_is_a_warning(webhook: Webhook, port: int) -> None:
    webhook.register(port)
    webhook.start(port)
    route = {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "ModelRoute",
        "metadata": {"name": "r"},
        "spec": {"modelName": "m", "rules": [{"targetModels": [{"modelServerName": "nobody"}]}]},
    }
    # The watch behind the warning may still be listing; until then nothing is said.
    wait_for(
        "the warning",
        lambda: "nobody" in webhook.kubectl("apply", "--dry-run=server", "-f", "-", manifest=route).stderr,
        20,
    )
    done = webhook.kubectl("apply", "-f", "-", manifest=route)
    assert done.returncode == 0
    assert "Warning: spec.rules[0].targetModels[0].modelServerName: there is no ModelServer 'nobody'" in done.stderr


def test_it_is_ready_only_when_the_api_server_can_trust_it(webhook: Webhook, port: int) -> None:
    process = webhook.start(port, wait=False)
    wait_for("the port", lambda: _handshakes(port), 30, lambda: None)
    assert not process.is_ready()
    webhook.register(port)
    process.wait_ready()
    assert webhook.trust() != {""}


def _handshakes(port: int) -> bool:
    try:
        ssl.get_server_certificate(("127.0.0.1", port), timeout=2)
    except OSError:
        return False
    return True


def test_applying_the_manifests_again_keeps_the_authority(webhook: Webhook, port: int) -> None:
    webhook.register(port)
    webhook.start(port)
    before = webhook.trust()
    webhook.register(port)
    assert webhook.trust() == before != {""}
    assert webhook.create(model())["metadata"]["name"] == "m"


def test_a_second_replica_serves_under_the_same_authority(webhook: Webhook) -> None:
    one, two = free_ports(2)
    webhook.register(one)
    first = webhook.start(one, wait=False)
    second = webhook.start(two, wait=False)
    first.wait_ready()
    second.wait_ready()
    assert ssl.get_server_certificate(("127.0.0.1", one)) == ssl.get_server_certificate(("127.0.0.1", two))
    before = webhook.trust()
    first.kill()
    webhook.register(two)
    # The API server hears of the new address a moment later.
    applied = lambda: webhook.kubectl("apply", "-f", "-", manifest=model())  # noqa: E731
    wait_for("the second replica", lambda: applied().returncode == 0, 20)
    assert webhook.trust() == before


def test_the_certificate_and_its_authority_change_without_a_failed_request(webhook: Webhook, port: int) -> None:
    webhook.register(port)
    # Four seconds before a certificate ends the next one is due: so long may this machine stand still.
    webhook.start(port, certificate=12, authority=28, settle=3, check=0.3)
    leaves, authorities, deadline, count = set(), set(), time.monotonic() + 60, 0
    while len(leaves) < 3 or len(authorities) < 2:
        assert time.monotonic() < deadline
        webhook.create(model(f"m-{count}"))
        count += 1
        # While a new authority is being published the two configurations differ; the poorer one must do as well.
        trust = base64.b64decode(min(webhook.trust(), key=len))
        authorities |= {ca.serial_number for ca in x509.load_pem_x509_certificates(trust)}
        leaves.add(_verified_certificate(port, trust))
        time.sleep(0.05)
    assert count > 20


def _verified_certificate(port: int, trust: bytes) -> bytes:
    context = ssl.create_default_context(cadata=trust.decode())
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def test_a_steady_webhook_writes_nothing_and_is_refused_nothing(webhook: Webhook, port: int) -> None:
    start = time.time()
    webhook.register(port)
    webhook.start(port)
    steady = time.time()
    time.sleep(3)  # six looks at Secret and configurations
    webhook.create(model())
    assert webhook.writes(steady) == []
    assert webhook.forbidden(start) == []


def test_a_killed_webhook_comes_back_with_the_same_certificate(webhook: Webhook, port: int) -> None:
    webhook.register(port)
    process = webhook.start(port)
    before = ssl.get_server_certificate(("127.0.0.1", port))
    process.kill()
    refused = webhook.kubectl("apply", "-f", "-", manifest=model())
    assert refused.returncode != 0
    assert "validate.matrixinfer.ai" in refused.stderr or "default.matrixinfer.ai" in refused.stderr
    process.start()
    process.wait_ready()
    assert ssl.get_server_certificate(("127.0.0.1", port)) == before
    assert webhook.create(model())["metadata"]["name"] == "m"
