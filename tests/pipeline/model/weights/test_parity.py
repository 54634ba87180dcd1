"""Compare the paper's models at full size with open_clip and Hugging Face, using the same weights.

The five fastest models are tested here. `python -m tests.pipeline.model.parity NAME ...` compares any; docs/results.md
has the results of all nine.
"""

import json
import subprocess
import sys

import pytest

from pipeline.model.config import model_config
from pipeline.model.weights.convert import empty_clip

PUBLISHED_MILLIONS = {
    "RN50": (38.3, 63.7),
    "RN101": (56.3, 63.4),
    "RN50x4": (87.1, 91.2),
    "RN50x16": (167.3, 123.7),
    "RN50x64": (420.4, 202.9),
    "ViT-B/32": (87.9, 63.4),
    "ViT-B/16": (86.2, 63.4),
    "ViT-L/14": (304.0, 123.7),
    "ViT-L/14@336px": (304.3, 123.7),
}
"""Millions of parameters of the image tower and the text tower, projections included."""
COMPARED = ("RN50", "RN101", "RN50x4", "ViT-B/32", "ViT-B/16")
MAX_DIFFERENCE = 1e-5


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_numbers_of_parameters_equal_the_published_ones(name: str) -> None:
    model = empty_clip(model_config(name))
    towers = (model.image_tower, model.text_tower)
    found = [sum(p.numel() for p in tower.parameters()) / 1e6 for tower in towers]
    assert found == pytest.approx(PUBLISHED_MILLIONS[name], abs=0.1)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_forward_passes_equal_those_of_open_clip_and_hugging_face() -> None:
    command = [sys.executable, "-m", "tests.pipeline.model.parity", *COMPARED]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert [result["name"] for result in results] == list(COMPARED)
    for result in results:
        name = result["name"]
        assert result["returned"], f"{name}: weights changed by exporting and importing them"
        assert ("huggingface" in result) == name.startswith("ViT")
        for peer in ("open_clip", "huggingface"):
            assert all(value <= MAX_DIFFERENCE for value in result.get(peer, {}).values()), (name, peer, result)
