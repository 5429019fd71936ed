"""Who may import what, where import-linter has no word for it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import matrixinfer.kube.transport

ROOT = Path(matrixinfer.kube.transport.__file__).parents[5]


def _imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_only_the_transport_imports_the_borrowed_client() -> None:
    sources = [*ROOT.glob("libs/*/src/**/*.py"), *ROOT.glob("services/*/src/**/*.py")]
    assert len(sources) > 20
    importers = [
        path.relative_to(ROOT).as_posix()
        for path in sources
        if "kubernetes_asyncio" in (text := path.read_text(encoding="utf-8"))
        and any(name.split(".")[0] == "kubernetes_asyncio" for name in _imports(text))
    ]
    assert importers == ["libs/kube/src/matrixinfer/kube/transport.py"]


def test_projections_and_stores_come_without_the_client() -> None:
    """A gateway worker may use `PodView` and `Store` without paying for the client's 38 MiB."""
    folder = ROOT / "libs/kube/src/matrixinfer/kube"
    waiting, reached = ["codec", "store", "plan", "sources"], set()
    while waiting:
        module = waiting.pop()
        reached.add(module)
        for name in _imports((folder / f"{module}.py").read_text(encoding="utf-8")):
            assert name.split(".")[0] not in {"aiohttp", "kubernetes_asyncio", "prometheus_client"}, module
            part = name.removeprefix("matrixinfer.kube.")
            if part != name and part not in reached:
                waiting.append(part)
    assert "transport" not in reached
