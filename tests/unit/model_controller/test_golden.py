"""What is rendered, whole, against files that people read in reviews.

MATRIXINFER_WRITE_GOLDEN=1 pytest tests/unit/model_controller/test_golden.py    writes them anew
"""

import json
import os
from pathlib import Path

import pytest
import yaml

from matrixinfer.api.v1alpha1.validation import validate

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/data/golden/model-controller"
MODELS = ["quickstart", "model-two-backends", "model-backend-policy", "model-policy-by-cost"]


@pytest.mark.parametrize("name", MODELS)
def test_everything_that_is_rendered_is_as_it_was_reviewed(world, name: str):
    made = world(name).plan()
    # Through JSON, so that values which appear twice are written twice, without anchors.
    documents = [json.loads(json.dumps(step.manifest)) for step in made.steps]
    text = yaml.safe_dump_all(documents, sort_keys=False, width=120)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("MATRIXINFER_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", MODELS)
def test_everything_that_is_rendered_is_valid(world, name: str):
    ours = [step.manifest for step in world(name).plan().steps if "matrixinfer.ai" in step.manifest["apiVersion"]]
    assert [str(fault) for manifest in ours for fault in validate(manifest)] == []
