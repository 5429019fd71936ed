"""A model as an OCI image layout: what every registry's tool expects, and nothing that could harm whoever reads it."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.downloader.test_cache import MODEL, filled, request, seen

from matrixinfer.downloader.archive import export_layout, export_model, import_model
from matrixinfer.downloader.core.manifest import READY_NAME, Ready, parse_ready
from matrixinfer.downloader.errors import Cause, DownloadError

Layout = Path


@pytest.fixture
def ready(tmp_path: Path) -> Ready:
    return filled(request(tmp_path / "one"), {**MODEL, "README.md": "twice", "sub/copy.md": "twice"})[0]


@pytest.fixture
def layout(ready: Ready, tmp_path: Path) -> Layout:
    export_layout(tmp_path / "one" / "m", tmp_path / "layout")
    return tmp_path / "layout"


def document(layout: Layout, digest: str) -> dict[str, Any]:
    content = (layout / "blobs" / digest.replace(":", "/")).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest.removeprefix("sha256:")
    found: dict[str, Any] = json.loads(content)
    return found


def manifest(layout: Layout) -> dict[str, Any]:
    (listed,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    return document(layout, listed["digest"])


def test_a_layout_is_what_the_image_specification_asks_for(layout: Layout) -> None:
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout / "index.json").read_bytes())
    assert index["schemaVersion"] == 2
    found = manifest(layout)
    assert found["schemaVersion"] == 2
    assert found["mediaType"] == index["manifests"][0]["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert found["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    for one in (index["manifests"][0], found["config"], *found["layers"]):
        content = (layout / "blobs" / one["digest"].replace(":", "/")).read_bytes()
        assert len(content) == one["size"]
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == one["digest"]
    named = {one["digest"] for one in (index["manifests"][0], found["config"], *found["layers"])}
    assert named == {f"sha256:{path.name}" for path in (layout / "blobs" / "sha256").iterdir()}


def test_every_file_is_a_layer_with_its_path_and_kind(layout: Layout, ready: Ready) -> None:
    layers = manifest(layout)["layers"]
    kinds = {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in layers}
    assert kinds == {
        "READY": "application/vnd.cncf.model.doc.v1.raw",
        "README.md": "application/vnd.cncf.model.doc.v1.raw",
        "config.json": "application/vnd.cncf.model.weight.config.v1.raw",
        "sub/copy.md": "application/vnd.cncf.model.doc.v1.raw",
        "sub/deep/w.bin": "application/vnd.cncf.model.weight.v1.raw",
    }
    config = document(layout, manifest(layout)["config"]["digest"])
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in layers]}


def test_contents_are_shared_with_the_cache_and_two_files_of_one_content_are_one_blob(
    layout: Layout, ready: Ready, tmp_path: Path
) -> None:
    assert len(list((layout / "blobs" / "sha256").iterdir())) == len({f.sha256 for f in ready.files}) + 3
    for file in ready.files:
        ours = tmp_path / "one" / "blobs" / file.sha256
        assert ours.samefile(layout / "blobs" / "sha256" / file.sha256)


def test_where_no_link_can_be_made_contents_are_copied(
    ready: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    export_layout(tmp_path / "one" / "m", tmp_path / "layout")
    monkeypatch.undo()
    assert import_model(tmp_path / "layout", tmp_path / "two", tmp_path / "two" / "m") == ready


@pytest.mark.parametrize("name", ["layout", "layout.tar"])
def test_a_model_is_the_same_in_another_cache(name: str, ready: Ready, tmp_path: Path) -> None:
    export_layout(tmp_path / "one" / "m", tmp_path / name)
    assert import_model(tmp_path / name, tmp_path / "two", tmp_path / "two" / "m") == ready
    assert seen(tmp_path / "two" / "m") == seen(tmp_path / "one" / "m")
    assert parse_ready((tmp_path / "two" / "m" / READY_NAME).read_bytes()) == ready


def test_the_same_model_makes_the_same_layout(ready: Ready, tmp_path: Path) -> None:
    export_layout(tmp_path / "one" / "m", tmp_path / "a.tar")
    import_model(tmp_path / "a.tar", tmp_path / "two", tmp_path / "two" / "m")
    export_layout(tmp_path / "two" / "m", tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_tar_of_a_layout_may_be_in_any_order_and_hold_folders(layout: Layout, ready: Ready, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        for path in sorted(layout.rglob("*"), reverse=True):
            tar.add(path, f"./{path.relative_to(layout)}", recursive=False)
    assert import_model(tmp_path / "other.tar", tmp_path / "two", tmp_path / "two" / "m") == ready


def test_a_folder_that_is_there_is_not_touched(layout: Layout, tmp_path: Path) -> None:
    before = sorted(layout.rglob("*"))
    with pytest.raises(DownloadError) as caught:
        export_layout(tmp_path / "one" / "m", layout)
    assert caught.value.cause is Cause.VOLUME_NOT_WRITABLE
    assert sorted(layout.rglob("*")) == before


def rewrite(layout: Layout, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as an attacker would: with every digest above it put right."""
    found = manifest(layout)
    change(found)
    content = json.dumps(found).encode()
    digest = hashlib.sha256(content).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(content)
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0] |= {"digest": f"sha256:{digest}", "size": len(content)}
    replace(layout / "index.json", json.dumps(index).encode())


def replace(path: Path, content: bytes) -> None:
    """Write under a name without writing through a hard link."""
    path.unlink()
    path.write_bytes(content)


def weights(layout: Layout) -> Path:
    return layout / "blobs" / "sha256" / hashlib.sha256(b"weights").hexdigest()


def renamed(name: str) -> Callable[[Layout], None]:
    return lambda layout: rewrite(
        layout, lambda m: m["layers"][-1]["annotations"].update({"org.cncf.model.filepath": name})
    )


def linked(layout: Layout) -> None:
    weights(layout).unlink()
    weights(layout).symlink_to("/etc/passwd")


def linked_folder(layout: Layout) -> None:
    shutil.move(layout / "blobs", layout.parent / "elsewhere")
    (layout / "blobs").symlink_to(layout.parent / "elsewhere")


def piped(layout: Layout) -> None:
    weights(layout).unlink()
    os.mkfifo(weights(layout))


def two_models(layout: Layout) -> None:
    index = json.loads((layout / "index.json").read_bytes())
    replace(layout / "index.json", json.dumps({**index, "manifests": index["manifests"] * 2}).encode())


DAMAGES: dict[str, Callable[[Layout], object]] = {
    "other bytes": lambda layout: replace(weights(layout), b"WEIGHTS"),
    "more bytes": lambda layout: replace(weights(layout), b"weights and more"),
    "a blob is missing": lambda layout: weights(layout).unlink(),
    "a link for a blob": linked,
    "a link for the folder of blobs": linked_folder,
    "a pipe for a blob": piped,
    "a name that leads out": renamed("../evil"),
    "an absolute name": renamed("/tmp/evil"),
    "a name that comes twice": renamed("config.json"),
    "no READY": lambda layout: rewrite(layout, lambda m: m["layers"].pop(0)),
    "a file too few": lambda layout: rewrite(layout, lambda m: m["layers"].pop()),
    "a file too many": lambda layout: rewrite(
        layout,
        lambda m: m["layers"].append({**m["layers"][0], "annotations": {"org.cncf.model.filepath": "evil"}}),
    ),
    "an absurd size": lambda layout: rewrite(layout, lambda m: m["layers"][-1].update(size=1 << 62)),
    "a size that is none": lambda layout: rewrite(layout, lambda m: m["layers"][-1].update(size="7")),
    "a digest that is a path": lambda layout: rewrite(layout, lambda m: m["layers"][-1].update(digest="sha256:../x")),
    "layers that are none": lambda layout: rewrite(layout, lambda m: m.update(layers=[1, None, "x"])),
    "an image of another kind": lambda layout: rewrite(layout, lambda m: m.pop("artifactType")),
    "two models": two_models,
    "an index that is no JSON": lambda layout: replace(layout / "index.json", b"[" * 100_000),
    "an index that is too long": lambda layout: os.truncate(layout / "index.json", 65 << 20),
    "no layout at all": lambda layout: (layout / "oci-layout").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_layout_that_is_not_sound_publishes_nothing(damage: str, layout: Layout, tmp_path: Path) -> None:
    DAMAGES[damage](layout)
    with pytest.raises(DownloadError) as caught:
        import_model(layout, tmp_path / "two", tmp_path / "two" / "m")
    assert caught.value.cause is Cause.INTEGRITY
    assert not (tmp_path / "two" / "m").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.REGTYPE])
def test_a_tar_with_a_link_a_device_or_one_name_twice_publishes_nothing(
    kind: bytes, ready: Ready, tmp_path: Path
) -> None:
    export_layout(tmp_path / "one" / "m", tmp_path / "layout.tar")
    with tarfile.open(tmp_path / "layout.tar", "a") as tar:
        more = tarfile.TarInfo("index.json")
        more.type, more.linkname = kind, "/etc/passwd"
        tar.addfile(more, io.BytesIO())
    with pytest.raises(DownloadError) as caught:
        import_model(tmp_path / "layout.tar", tmp_path / "two", tmp_path / "two" / "m")
    assert caught.value.cause is Cause.INTEGRITY
    assert not (tmp_path / "two" / "m").exists()


def test_the_plain_archive_and_the_layout_carry_the_same_model(ready: Ready, layout: Layout, tmp_path: Path) -> None:
    export_model(tmp_path / "one" / "m", tmp_path / "model.tar")
    first = import_model(tmp_path / "model.tar", tmp_path / "two", tmp_path / "two" / "m")
    assert first.digest == import_model(layout, tmp_path / "three", tmp_path / "three" / "m").digest == ready.digest
