"""The rules of the workspace that no single member can check for itself."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMBERS = sorted(p.parent for p in [*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")])
SERVICES = sorted(p.parent.name for p in ROOT.glob("services/*/pyproject.toml"))


def tracked() -> list[Path]:
    """Every file under version control."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_there_are_six_services_and_seven_libraries():
    assert len(SERVICES) == 6
    assert len(MEMBERS) == 13


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_no_member_claims_the_shared_namespace(member: Path):
    assert not (member / "src/matrixinfer/__init__.py").exists()


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_every_member_carries_the_one_version(member: Path):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tomllib.loads((member / "pyproject.toml").read_text())["project"]["version"] == version


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.name)
def test_every_member_is_typed(member: Path):
    package = next((member / "src/matrixinfer").iterdir())
    assert (package / "py.typed").exists()


def test_every_pin_is_a_plain_line():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+_-]+", pin) for pin in pins)


def test_no_file_names_a_package_host_or_a_path_of_one_machine():
    forbidden = re.compile(
        "|".join(
            [
                "pyp" + r"i\.org",
                "pythonho" + r"sted\.",
                r"registry\.npm" + r"js",
                r"proxy\.gola" + "ng",
                r"deb\.deb" + r"ian\.",
                "/ro" + r"ot/\.",
                "/wor" + "k/ma" + "in",
            ]
        )
    )
    guilty = [str(path) for path in tracked() if forbidden.search(path.read_text(errors="ignore"))]
    assert guilty == []


def test_no_binary_is_committed():
    assert [str(p) for p in tracked() if b"\0" in p.read_bytes()[:4096]] == []


def test_no_folder_is_a_junk_drawer():
    assert [str(p) for p in tracked() if p.name in {"utils.py", "helpers.py", "common.py", "misc.py"}] == []
