"""The manifests that we tell users to apply: valid, without anything that is hardly meant, and readable."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from matrixinfer.api.v1alpha1.schema import TYPES
from matrixinfer.api.v1alpha1.validation import validate

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples").glob("*/*.yaml"))


def ours(path: Path) -> list[dict[str, Any]]:
    documents = (document for document in yaml.safe_load_all(path.read_text()) if document)
    return [document for document in documents if document["kind"] in TYPES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_example_is_valid(path: Path):
    assert [str(fault) for document in ours(path) for fault in validate(document)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_example_tells_what_it_shows(path: Path):
    assert path.read_text().startswith("# ")


def test_there_are_examples():
    assert any(document["kind"] == "Model" for path in FILES for document in ours(path))
