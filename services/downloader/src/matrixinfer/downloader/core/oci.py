"""The documents of a model as an OCI image layout, by the CNCF ModelPack format. Pure.

One layer is one file, as it is, with its path as an annotation: blobs are named by sha256, as ours are. READY is the
first layer, so a tool of anybody's that unpacks the layers leaves a folder that is a publication. The traps: readers of
a layout believe nothing of it, so what does not say exactly what READY says is refused; and a manifest may name
layers without end, or numbers for which there is no room.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from matrixinfer.downloader.core.manifest import READY_NAME, Ready, VerifiedFile

__all__ = ["INDEX_NAME", "MARK_NAME", "Documents", "blob_name", "documents", "manifest_of", "ready_of", "same_files"]

INDEX_NAME = "index.json"
MARK_NAME = "oci-layout"

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG = "application/vnd.cncf.model.config.v1+json"
_WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
_SETTINGS = "application/vnd.cncf.model.weight.config.v1.raw"
_DOC = "application/vnd.cncf.model.doc.v1.raw"
_CODE = "application/vnd.cncf.model.code.v1.raw"
_PATH = "org.cncf.model.filepath"
_TITLE = "org.opencontainers.image.title"
_DIGEST = "ai.matrixinfer.model.digest"
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_SUFFIXES = {"json": _SETTINGS, "txt": _SETTINGS, "model": _SETTINGS, "jinja": _SETTINGS, "md": _DOC, "py": _CODE}


@dataclass(frozen=True, slots=True)
class Documents:
    """What a layout holds beside the files of the model: small, and the same for the same READY."""

    mark: bytes
    index: bytes
    blobs: Mapping[str, bytes]
    """By sha256: the manifest, its config, READY."""


def documents(ready: Ready) -> Documents:
    """Return the documents of a layout that holds one model."""
    text = ready.to_json()
    marker = VerifiedFile(READY_NAME, len(text), sha256(text).hexdigest())
    files = (marker, *ready.files)
    config = _json(
        {
            "descriptor": {"sourceURL": ready.source, "revision": ready.resolved_revision},
            "config": {},
            "modelfs": {"type": "layers", "diffIds": [f"sha256:{file.sha256}" for file in files]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "artifactType": _ARTIFACT,
            "config": _descriptor(_CONFIG, config),
            "layers": [_layer(file) for file in files],
            "annotations": {_DIGEST: ready.digest},
        }
    )
    listed = {**_descriptor(_MANIFEST, manifest), "artifactType": _ARTIFACT}
    index = _json({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [listed]})
    blobs = {sha256(blob).hexdigest(): blob for blob in (manifest, config, text)}
    return Documents(_json({"imageLayoutVersion": "1.0.0"}), index, blobs)


def blob_name(sha: str) -> str:
    """Return the name of a blob within a layout."""
    return f"blobs/sha256/{sha}"


def manifest_of(index: bytes) -> VerifiedFile:
    """Return the one manifest that an index names; raises ValueError with the reason."""
    manifests = _list(_parsed(index), "manifests")
    if len(manifests) != 1:
        raise ValueError(f"its index names {len(manifests)} manifests; one model is one manifest")
    return _described(manifests[0], INDEX_NAME)


def ready_of(manifest: bytes) -> VerifiedFile:
    """Return the blob that is READY; raises ValueError with the reason."""
    for file in _layers(manifest):
        if file.path == READY_NAME:
            return file
    raise ValueError("it holds no READY, so it is none that `export` wrote")


def same_files(manifest: bytes, ready: Ready) -> None:
    """Check that the layers are READY and what it names, each once; raises ValueError with the reason."""
    layers = [file for file in _layers(manifest) if file.path != READY_NAME]
    found = {file.path: file for file in layers}
    if len(found) != len(layers):
        raise ValueError("two of its layers have one name")
    for file in ready.files:
        if found.pop(file.path, None) != file:
            raise ValueError(f"{file.path!r} is not among its layers as its READY says")
    if found:
        raise ValueError(f"{min(found)!r} is not a file that its READY names")


def _layers(manifest: bytes) -> list[VerifiedFile]:
    parsed = _parsed(manifest)
    if parsed.get("artifactType") != _ARTIFACT:
        raise ValueError("its manifest is not one of a model")
    layers = _list(parsed, "layers")
    return [_described(layer, str(_mapping(layer.get("annotations")).get(_PATH, ""))) for layer in layers]


def _described(descriptor: Mapping[str, Any], path: str) -> VerifiedFile:
    digest, size = _SHA256.fullmatch(str(descriptor.get("digest", ""))), descriptor.get("size")
    if digest is None or type(size) is not int or size < 0:
        raise ValueError(f"{path!r} has no sound digest and size")
    return VerifiedFile(path, size, digest.group(1))


def _layer(file: VerifiedFile) -> dict[str, Any]:
    kind = _DOC if file.path == READY_NAME else _SUFFIXES.get(file.path.rsplit(".", 1)[-1].lower(), _WEIGHT)
    names = {_PATH: file.path, _TITLE: file.path}
    return {"mediaType": kind, "digest": f"sha256:{file.sha256}", "size": file.size, "annotations": names}


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256(content).hexdigest()}", "size": len(content)}


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _parsed(text: bytes) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(text))
    except (ValueError, RecursionError) as exc:
        raise ValueError("one of its documents is not JSON") from exc


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = document.get(name)
    return [_mapping(entry) for entry in found] if isinstance(found, list) else []
