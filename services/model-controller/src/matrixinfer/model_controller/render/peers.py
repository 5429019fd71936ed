"""How pods give models to one another: a server beside the engine, and the downloader told whom to ask.

Only where it is switched on and each pod has a volume of its own; otherwise nothing of a pod changes. The server is a
native sidecar: it starts before the download, so that pods that start together can share, and ends after the engine. It
sees the cache read-only, has no token for the API, and runs as an ordinary user wherever the cache lies. The traps: a
Secret that is missing must not hold up a pod, so the reference to it is optional; and the admin port of the
downloader is taken while both run, so the server has another.
"""

from typing import Any, Final

from matrixinfer.model_controller.render.environment import RenderEnvironment

__all__ = ["share"]

_PREFIX: Final = "MATRIXINFER_DOWNLOADER_"
_PORT: Final = 8731
_ADMIN_PORT: Final = 9091
_USER_ID: Final = 65532
_RESOURCES: Final = {"requests": {"cpu": "10m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}}


def share(
    containers: list[dict[str, Any]], mount: dict[str, Any], namespace: str, environment: RenderEnvironment
) -> None:
    """Put the server before the downloaders, and tell these whom to ask."""
    token = {
        "name": f"{_PREFIX}PEER_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": environment.peers_secret, "key": "token", "optional": True}},
    }
    asks: list[dict[str, Any]] = [
        {"name": f"{_PREFIX}PEERS", "value": f"{environment.peers_service}.{namespace}.svc"},
        {"name": f"{_PREFIX}PEER_PORT", "value": str(_PORT)},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
        token,
    ]
    ours = {variable["name"] for variable in asks}
    for container in containers:
        # Whether pods share is the installation's to say: what the Model has under these names gives way.
        theirs = [variable for variable in container.get("env", ()) if variable["name"] not in ours]
        container["env"] = [*theirs, *asks]
    containers.insert(0, _server(token, mount, environment))


def _server(token: dict[str, Any], mount: dict[str, Any], environment: RenderEnvironment) -> dict[str, Any]:
    return {
        "name": "peers",
        "image": environment.downloader_image,
        "args": ["serve", "--cache", mount["mountPath"]],
        "restartPolicy": "Always",
        "env": [
            {"name": f"{_PREFIX}PEER_PORT", "value": str(_PORT)},
            {"name": f"{_PREFIX}ADMIN_PORT", "value": str(_ADMIN_PORT)},
            token,
        ],
        "ports": [
            {"name": "peers", "containerPort": _PORT, "protocol": "TCP"},
            {"name": "peers-admin", "containerPort": _ADMIN_PORT, "protocol": "TCP"},
        ],
        "resources": _RESOURCES,
        "securityContext": {
            "runAsUser": _USER_ID,
            "runAsNonRoot": True,
            "runAsGroup": _USER_ID,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{**mount, "readOnly": True}],
    }
