"""scripts/kill_study.py finds what it looks for; the killing itself is kept outside CI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.loading import load_file

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "kill_study.py"


@pytest.fixture(scope="module")
def script():
    return load_file(SCRIPT)


def finished_study(
    results: Path, *, seconds: float = 1.0, weight: float = 0.5, loss: float = 2.0, pixels: int = 9
) -> Path:
    """The files of one finished run that the comparison reads."""
    folder = results / "studies" / "tiny" / "full-s0"
    run = folder / "run"
    run.mkdir(parents=True)
    for name in ("last", "best"):
        save_file({"w": torch.tensor([weight])}, run / f"{name}.safetensors")
    (run / "result.json").write_text(json.dumps({"val_miou": 0.25, "seconds": seconds}))
    (run / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "loss": loss, "step_s": seconds}) + "\n")
    (folder / "evaluation.json").write_text(json.dumps({"matrix": [[pixels]]}))
    return folder


def test_equal_studies_may_differ_in_time_alone(script, tmp_path):
    finished_study(tmp_path / "a")
    finished_study(tmp_path / "b", seconds=7.0)
    assert script.differences(tmp_path / "a", tmp_path / "b") == []


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"weight": 0.5000001}, ["last.safetensors has other weights", "best.safetensors has other weights"]),
        ({"loss": 2.0000001}, ["metrics.jsonl"]),
        ({"pixels": 8}, ["another confusion matrix"]),
    ],
)
def test_any_other_difference_is_found(script, tmp_path, changed, found):
    finished_study(tmp_path / "a")
    finished_study(tmp_path / "b", **changed)
    said = script.differences(tmp_path / "a", tmp_path / "b")
    assert len(said) == len(found)
    assert all(part in line for part, line in zip(found, said, strict=True))


def test_lost_runs_and_leftovers_are_found(script, tmp_path):
    folder = finished_study(tmp_path / "a")
    finished_study(tmp_path / "b")
    (folder / "run" / ".last.pt.17.tmp").touch()
    (folder / "failure.json").write_text("{}")
    (said,) = script.differences(tmp_path / "a", tmp_path / "b")
    assert "failure.json" in said
    assert ".last.pt.17.tmp" in said
    assert len(script.differences(tmp_path / "a", tmp_path / "empty")) == 1


def test_torn_files_are_found(script, tmp_path):
    folder = finished_study(tmp_path)
    assert script.damaged(tmp_path) == []
    (folder / "evaluation.json").write_text('{"matrix": [[')
    (folder / "run" / "metrics.jsonl").write_text("{}\nnothing\n")
    said = " ".join(script.damaged(tmp_path))
    assert "evaluation.json is damaged" in said
    assert "metrics.jsonl line 2 is not JSON" in said
    assert len(script.finished(tmp_path)) == 3
