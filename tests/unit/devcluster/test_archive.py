"""An image written without a container engine."""

import hashlib
import tarfile
from pathlib import Path

import orjson
import pytest

from matrixinfer.devcluster.archive import write_image


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF and so on")
    return path


def test_every_digest_is_that_of_its_content(tmp_path: Path, program: Path):
    write_image(tmp_path / "image.tar", "matrixinfer/pause:1", program, "pause")
    with tarfile.open(tmp_path / "image.tar") as archive:
        members = {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    (manifest,) = orjson.loads(members["manifest.json"])
    assert manifest["RepoTags"] == ["matrixinfer/pause:1"]
    raw = members[manifest["Config"]]
    assert manifest["Config"] == f"{hashlib.sha256(raw).hexdigest()}.json"
    config = orjson.loads(raw)
    (layer,) = manifest["Layers"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(members[layer]).hexdigest()}"]
    assert config["config"]["Entrypoint"] == ["/pause"]
    assert config["config"]["User"] == "65532:65532"


def test_the_program_is_in_its_layer_and_executable(tmp_path: Path, program: Path):
    write_image(tmp_path / "image.tar", "x:1", program, "pause")
    with tarfile.open(tmp_path / "image.tar") as archive:
        name = next(n for n in archive.getnames() if n.endswith("layer.tar"))
        with tarfile.open(fileobj=archive.extractfile(name)) as layer:
            entry = layer.getmember("pause")
            assert entry.mode == 0o755
            assert layer.extractfile(entry).read() == program.read_bytes()  # type: ignore[union-attr]


def test_equal_inputs_give_equal_bytes(tmp_path: Path, program: Path):
    for name in ("a.tar", "b.tar"):
        write_image(tmp_path / name, "x:1", program, "pause")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
