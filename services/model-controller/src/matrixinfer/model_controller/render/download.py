"""How the bytes come into a pod: the cache volume, the downloader before the engine, and its right to report.

Owns paths and mounts. The downloader is the only container of the pod with a token, and the token can only write the
status of ModelVersions. The volume is a cache by content: what the engine is given is a link of its version, which
appears when every byte behind it is verified, and leads to a folder that never changes. The engine sees it read-only.

Traps: a claim or a folder of the node is shared by pods of several Models, so a link is named after the namespace and
the version. A folder of the node belongs to root, and `fsGroup` does not change that, so there the downloader runs as
root, without any capability.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from matrixinfer.api.names import MODEL_MANAGED_BY, REGISTRY_GROUP
from matrixinfer.api.v1alpha1.model import LoraAdapter
from matrixinfer.api.v1alpha1.modelversion import ModelVersionSpec
from matrixinfer.model_controller.render.environment import RenderEnvironment
from matrixinfer.model_controller.render.errors import RenderError
from matrixinfer.model_controller.render.peers import share
from matrixinfer.model_controller.resources import MODELS, ROLE_BINDINGS, SERVICE_ACCOUNTS

__all__ = ["ACCOUNT", "GROUP_ID", "Download", "access", "download"]

ACCOUNT: Final = "matrixinfer-downloader"
"""Name of the ServiceAccount, the RoleBinding and the ClusterRole of the downloader."""
GROUP_ID: Final = 65532
"""User and group of the downloader, and group of the volumes that it fills."""

_MODELS: Final = "/models"
# A path, not a secret.
_TOKEN: Final = "/var/run/secrets/matrixinfer"  # noqa: S105
_CLAIMS: Final = "/claims"
_TOKEN_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True)
class Download:
    """The parts of a pod that bring the model into it, and where the engine finds it."""

    model_path: str
    adapter_paths: tuple[tuple[str, str], ...]
    volumes: tuple[dict[str, Any], ...]
    init_containers: tuple[dict[str, Any], ...]
    engine_mounts: tuple[dict[str, Any], ...]


def download(
    version_name: str, spec: ModelVersionSpec, namespace: str, cache_uri: str | None, environment: RenderEnvironment
) -> Download:
    """Return what every pod of a version needs to have the model.

    Raises:
        RenderError: the cache or the source cannot be mounted.
    """
    cache, sub_path = _cache(cache_uri)
    # Links of the version's own: what another version of the same source brings never moves under a running engine.
    place = f"{_MODELS}/versions/{namespace}/{version_name}"
    model_path = f"{place}/model"
    adapters = tuple((adapter, f"{place}/adapter-{index}") for index, adapter in enumerate(spec.lora_adapters))
    sources = _sources([spec.model_uri, *(adapter.artifact_url for adapter in spec.lora_adapters)], environment)
    mount: dict[str, Any] = {"name": "models", "mountPath": _MODELS, **({"subPath": sub_path} if sub_path else {})}
    containers = [
        _downloader("downloader", _model_arguments(version_name, spec, namespace, model_path), spec, mount, sources)
    ]
    containers += [
        _downloader(f"adapter-{index}", _adapter_arguments(adapter, path), spec, mount, sources)
        for index, (adapter, path) in enumerate(adapters)
    ]
    for container in containers:
        container["image"] = environment.downloader_image
        container["securityContext"] = _security(on_node="hostPath" in cache)
    # A claim is one volume for all pods: there is nothing that one of them could give to another.
    if environment.peers_service and "persistentVolumeClaim" not in cache:
        share(containers, mount, namespace, environment)
    return Download(
        model_path=model_path,
        adapter_paths=tuple((adapter.name, path) for adapter, path in adapters),
        volumes=(
            {"name": "models", **cache},
            {"name": "downloader-tmp", "emptyDir": {}},
            {"name": "downloader-token", "projected": _token()},
            *({"name": source.name, **source.volume} for source in sources),
        ),
        init_containers=tuple(containers),
        engine_mounts=({**mount, "readOnly": True},),
    )


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    volume: dict[str, Any]
    path: str


def _cache(cache_uri: str | None) -> tuple[dict[str, Any], str]:
    if cache_uri is None:
        return {"emptyDir": {}}, ""
    scheme, _, place = cache_uri.partition("://")
    if ".." in place.split("/"):
        raise RenderError("CacheRefused", f"cacheURI {cache_uri!r} leads out of its folder; remove '..'")
    if scheme == "hostpath":
        return {"hostPath": {"path": "/" + place.strip("/"), "type": "DirectoryOrCreate"}}, ""
    claim, _, sub_path = place.strip("/").partition("/")
    if not claim:
        raise RenderError(
            "CacheRefused", f"cacheURI {cache_uri!r} names no claim; write pvc://claim or pvc://claim/folder"
        )
    return {"persistentVolumeClaim": {"claimName": claim}}, sub_path.strip("/")


def _sources(uris: Sequence[str], environment: RenderEnvironment) -> tuple[_Source, ...]:
    """Volumes of sources that are mounted instead of fetched, each once."""
    found: dict[str, _Source] = {}
    for uri in uris:
        scheme, _, place = uri.partition("://")
        if scheme == "pvc":
            claim = place.strip("/").partition("/")[0]
            volume = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
            found.setdefault(f"pvc:{claim}", _Source(f"source-{len(found)}", volume, f"{_CLAIMS}/{claim}"))
        elif scheme == "file":
            if not environment.allow_file_sources:
                raise RenderError(
                    "SourceRefused",
                    f"{uri!r} reads the disk of a node, which this installation does not allow; use s3:// or pvc://",
                )
            path = "/" + place.strip("/")
            found.setdefault(uri, _Source(f"source-{len(found)}", {"hostPath": {"path": path}}, path))
    return tuple(found.values())


def _model_arguments(version_name: str, spec: ModelVersionSpec, namespace: str, path: str) -> list[str]:
    arguments = ["fetch", "--source", spec.model_uri, "--cache", _MODELS, "--output", path]
    arguments += [argument for glob in spec.include for argument in ("--include", glob)]
    arguments += [argument for glob in spec.exclude for argument in ("--exclude", glob)]
    return [*arguments, "--model-version", version_name, "--namespace", namespace]


def _adapter_arguments(adapter: LoraAdapter, path: str) -> list[str]:
    return ["fetch", "--source", adapter.artifact_url, "--cache", _MODELS, "--output", path]


def _downloader(
    name: str, arguments: Sequence[str], spec: ModelVersionSpec, mount: dict[str, Any], sources: Sequence[_Source]
) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": name,
        "args": list(arguments),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            mount,
            # A path inside the container, on a volume of its own.
            {"name": "downloader-tmp", "mountPath": "/tmp"},  # noqa: S108
            {"name": "downloader-token", "mountPath": _TOKEN, "readOnly": True},
            *({"name": source.name, "mountPath": source.path, "readOnly": True} for source in sources),
        ],
    }
    if spec.env:
        container["env"] = list(spec.env)
    if spec.env_from:
        container["envFrom"] = list(spec.env_from)
    return container


def _security(*, on_node: bool) -> dict[str, Any]:
    identity = {"runAsUser": 0, "runAsNonRoot": False} if on_node else {"runAsUser": GROUP_ID, "runAsNonRoot": True}
    return {
        **identity,
        "runAsGroup": GROUP_ID,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _token() -> dict[str, Any]:
    return {
        # The downloader's user is not root, and the kubelet gives token files to root and fsGroup only.
        "defaultMode": 0o440,
        "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": _TOKEN_SECONDS}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ],
    }


def access(namespace: str, models: Sequence[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ServiceAccount and the RoleBinding that the pods of a namespace share.

    `models` are name and uid of all its Models: they own the two together, so these go with the last one.
    """
    owners = [{"apiVersion": MODELS.api_version, "kind": MODELS.kind, "name": name, "uid": uid} for name, uid in models]
    metadata = {
        "name": ACCOUNT,
        "namespace": namespace,
        "labels": {MODEL_MANAGED_BY: REGISTRY_GROUP},
        "ownerReferences": owners,
    }
    account = {
        "apiVersion": SERVICE_ACCOUNTS.api_version,
        "kind": SERVICE_ACCOUNTS.kind,
        "metadata": metadata,
        "automountServiceAccountToken": False,
    }
    binding = {
        "apiVersion": ROLE_BINDINGS.api_version,
        "kind": ROLE_BINDINGS.kind,
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
    }
    return account, binding
