"""The command line: what to fetch and where to. Credentials and limits come from the environment, never from here.

Owns the arguments and nothing else. The trap: arguments are visible to everybody on the node and in the pod's
spec, so there is no option that could carry a secret.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from matrixinfer.downloader.core.uri import SCHEMES
from matrixinfer.downloader.errors import EXIT_CODES

__all__ = ["Arguments", "ExportArguments", "FetchArguments", "ImportArguments", "ServeArguments", "parse_arguments"]


@dataclass(frozen=True, slots=True)
class FetchArguments:
    """Arguments of `fetch`."""

    source: str
    output: Path
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    model_version: str
    namespace: str
    cache: Path | None = None


@dataclass(frozen=True, slots=True)
class ExportArguments:
    """Arguments of `export`."""

    model: Path
    archive: Path
    form: Literal["tar", "oci"] = "tar"


@dataclass(frozen=True, slots=True)
class ImportArguments:
    """Arguments of `import`."""

    archive: Path
    cache: Path
    output: Path


@dataclass(frozen=True, slots=True)
class ServeArguments:
    """Arguments of `serve`."""

    cache: Path


Arguments: TypeAlias = FetchArguments | ExportArguments | ImportArguments | ServeArguments


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read the command line; a wrong one ends the process with exit code 2 and a usage line on stderr."""
    parser = argparse.ArgumentParser(
        prog="matrixinfer-downloader",
        description="Brings a model onto a volume, verified.",
        epilog=f"Exit codes: 0 ready, 1 crashed, {_codes()}.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("fetch", help="fetch, verify and publish one model", allow_abbrev=False)
    fetch.add_argument("--source", required=True, help=f"URI of the model: {', '.join(f'{s}://' for s in SCHEMES)}")
    fetch.add_argument("--output", required=True, type=Path, help="folder that shall hold the files and READY")
    fetch.add_argument(
        "--cache",
        type=Path,
        help="folder that keeps files by content for many models; the output becomes a link into it",
    )
    fetch.add_argument("--include", action="append", default=[], metavar="GLOB", help="take only these files")
    fetch.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="leave these files out")
    fetch.add_argument("--model-version", default="", metavar="NAME", help="ModelVersion to report to")
    fetch.add_argument("--namespace", default="", help="its namespace; the pod's own when left out")
    out = commands.add_parser("export", help="write a model to a file or folder to carry", allow_abbrev=False)
    out.add_argument("--model", required=True, type=Path, help="folder of the model, or a link to it")
    out.add_argument("--archive", required=True, type=Path, help="what to write; with oci a folder, or NAME.tar")
    out.add_argument(
        "--format", choices=("tar", "oci"), default="tar", help="a tar file of the files, or an OCI image layout"
    )
    into = commands.add_parser("import", help="bring a model from what `export` wrote into a cache", allow_abbrev=False)
    into.add_argument("--archive", required=True, type=Path, help="what `export` wrote, in either format")
    into.add_argument("--cache", required=True, type=Path, help="folder that keeps files by content")
    into.add_argument("--output", required=True, type=Path, help="what becomes a link to the model")
    serve = commands.add_parser("serve", help="give the models of a cache to other pods", allow_abbrev=False)
    serve.add_argument("--cache", required=True, type=Path, help="folder that keeps files by content")
    given = parser.parse_args(argv)
    if given.command == "serve":
        return ServeArguments(given.cache.absolute())
    if given.command == "export":
        return ExportArguments(given.model.absolute(), given.archive.absolute(), given.format)
    if given.command == "import":
        return ImportArguments(given.archive.absolute(), given.cache.absolute(), given.output.absolute())
    if given.namespace and not given.model_version:
        fetch.error("--namespace needs --model-version")
    return FetchArguments(
        source=given.source,
        output=given.output.absolute(),
        include=tuple(given.include),
        exclude=tuple(given.exclude),
        model_version=given.model_version,
        namespace=given.namespace,
        cache=given.cache.absolute() if given.cache else None,
    )


def _codes() -> str:
    causes: dict[int, list[str]] = {}
    for cause, code in EXIT_CODES.items():
        causes.setdefault(code, []).append(cause)
    return ", ".join(f"{code} {'/'.join(names)}" for code, names in sorted(causes.items()))
