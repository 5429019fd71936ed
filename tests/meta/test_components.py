"""What an overlay may add: each component fits the base that it patches, and its settings exist."""

from pathlib import Path
from typing import Any

import yaml

from matrixinfer.gateway.settings import GatewaySettings
from matrixinfer.model_controller.settings import ModelControllerSettings

ROOT = Path(__file__).parents[2]
TLS = ROOT / "deploy/components/gateway-tls"
PEERS = ROOT / "deploy/components/peers"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_tls_files_are_where_the_secret_is_mounted_and_readable_by_the_gateway() -> None:
    base = read(ROOT / "deploy/base/gateway/deployment.yaml")["spec"]["template"]["spec"]
    pod = read(TLS / "deployment.yaml")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [mount], [volume] = container["volumeMounts"], pod["volumes"]
    assert container["name"] in [c["name"] for c in base["containers"]]
    assert mount["name"] == volume["name"]
    assert {Path(one["value"]) for one in container["env"]} == {
        Path(mount["mountPath"]) / name for name in ("tls.crt", "tls.key")
    }
    fields = {one["name"].removeprefix("MATRIXINFER_GATEWAY_").lower() for one in container["env"]}
    assert fields == {"tls_cert_file", "tls_key_file"} <= set(GatewaySettings.model_fields)
    # Files of a Secret belong to root; the group makes them readable, and to nobody else.
    assert pod["securityContext"]["fsGroup"] == base["securityContext"]["runAsGroup"]
    assert volume["secret"]["defaultMode"] == 0o440


def test_the_port_that_tls_takes_over_is_the_one_that_clients_use() -> None:
    port = read(ROOT / "deploy/base/gateway/service.yaml")["spec"]["ports"][0]
    test, replace = read(TLS / "service.yaml")
    assert (test["op"], test["value"]) == ("test", port["name"])
    assert (replace["value"]["port"], replace["value"]["targetPort"]) == (443, port["targetPort"])


def test_peers_are_switched_on_by_a_setting_of_the_model_controller() -> None:
    base = read(ROOT / "deploy/base/model-controller/deployment.yaml")
    patch = read(PEERS / "deployment.yaml")
    [container] = patch["spec"]["template"]["spec"]["containers"]
    [variable] = container["env"]
    assert patch["metadata"]["name"] == base["metadata"]["name"]
    assert container["name"] in [c["name"] for c in base["spec"]["template"]["spec"]["containers"]]
    field = variable["name"].removeprefix("MATRIXINFER_MODEL_CONTROLLER_").lower()
    assert (field, variable["value"]) == ("peers_service", "matrixinfer-peers")
    assert field in ModelControllerSettings.model_fields


def test_a_component_lists_its_files() -> None:
    for component in (ROOT / "deploy/components").iterdir():
        listed = {patch["path"] for patch in read(component / "kustomization.yaml")["patches"]}
        assert listed == {p.name for p in component.glob("*.yaml")} - {"kustomization.yaml"}
