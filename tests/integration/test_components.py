"""Kustomize itself builds the components on top of the base."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from matrixinfer.devcluster import ControlPlane, repository

ROOT = repository()


@pytest.mark.integration
def test_tls_for_the_gateway_builds_on_the_base(tmp_path: Path) -> None:
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        # Kustomize takes relative paths only.
        "resources": [os.path.relpath(ROOT / "deploy/base", tmp_path)],
        "components": [os.path.relpath(ROOT / "deploy/components/gateway-tls", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    kubectl = ControlPlane.binaries()["kubectl"]
    built = subprocess.run([kubectl, "kustomize", tmp_path], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    kinds = {(doc["kind"], doc["metadata"]["name"]): doc for doc in yaml.safe_load_all(built.stdout)}
    [gateway] = kinds["Deployment", "gateway"]["spec"]["template"]["spec"]["containers"]
    assert gateway["volumeMounts"] == [{"mountPath": "/etc/matrixinfer/tls", "name": "tls", "readOnly": True}]
    assert [port["name"] for port in kinds["Service", "gateway"]["spec"]["ports"]] == ["https", "admin"]
