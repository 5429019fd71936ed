"""Writes a container image as an archive that every runtime imports: one program, one layer, no registry.

Equal inputs give equal bytes: times and owners are fixed. Refuses to own real images: those are built by a container
engine (`tools.images`).
"""

import hashlib
import io
import platform
import tarfile
from pathlib import Path

import orjson

__all__ = ["write_image"]

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_image(path: Path, reference: str, program: Path, name: str, *, user: str = "65532:65532") -> None:
    """Write the image `reference` that runs the static `program` as /`name` to the archive `path`."""
    layer = _tar({name: (program.read_bytes(), 0o755)})
    layer_digest = hashlib.sha256(layer).hexdigest()
    config = orjson.dumps(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {"Entrypoint": [f"/{name}"], "User": user, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": name}],
        }
    )
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    layer_name = f"{layer_digest}/layer.tar"
    manifest = orjson.dumps([{"Config": config_name, "RepoTags": [reference], "Layers": [layer_name]}])
    members = {
        config_name: (config, 0o644),
        layer_name: (layer, 0o644),
        "manifest.json": (manifest, 0o644),
    }
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(_tar(members))
    partial.replace(path)


def _tar(members: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (content, mode) in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
