"""Runs inside an image build: prepares the interpreter, or installs wheels that were fetched outside.

Without arguments it compiles the standard library (a read-only root file system can never cache bytecode) and
makes the virtual environment /opt/matrixinfer. With arguments it hands them to pip, which runs from its own
wheel, offline.
"""

import compileall
import os
import py_compile
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HOME = Path("/opt/matrixinfer")
WHEELS = Path("/wheels")
NONROOT = 65532
SKIPPED = ("test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip")
STATE_FOLDERS = (Path("/models"), Path("/data"))


def prepare() -> None:
    """Compile the standard library, make the environment and the folders that a volume may cover."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    for entry in sorted(stdlib.iterdir()):
        if entry.name in SKIPPED:
            continue
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        if entry.is_dir():
            compileall.compile_dir(entry, quiet=1, invalidation_mode=unchecked)
        elif entry.suffix == ".py":
            compileall.compile_file(entry, quiet=1, invalidation_mode=unchecked)
    venv.create(HOME, with_pip=False, symlinks=True)
    for folder in STATE_FOLDERS:
        folder.mkdir(exist_ok=True)
        os.chown(folder, NONROOT, NONROOT)


def install(arguments: list[str]) -> None:
    """Install from the mounted wheels and nowhere else."""
    pip = next(WHEELS.joinpath("pip").glob("pip-*.whl"))
    links = [f"--find-links={folder}" for folder in sorted(WHEELS.iterdir()) if folder.is_dir()]
    quiet = ("--no-warn-script-location", "--root-user-action=ignore", "--disable-pip-version-check", "--quiet")
    offline = ("--no-index", "--no-cache-dir", *links)
    subprocess.run(
        [sys.executable, f"{pip}/pip", "--python", str(HOME / "bin/python"), "install", *quiet, *offline, *arguments],
        check=True,
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        install(sys.argv[1:])
    else:
        prepare()
