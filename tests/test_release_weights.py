"""scripts/release_weights.py on small runs: its files, its errors, and that no run folder changes."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from s2fpn_lib.checkpoint import RELEASED, load_model, read_metadata, save_weights
from s2fpn_lib.data import get_protocol
from s2fpn_lib.model import build_model
from tests.loading import load_file

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "release_weights.py"
CLASSES = get_protocol("roadscenes").num_classes


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script; it releases into a folder of the test."""
    module = load_file(SCRIPT)
    monkeypatch.setattr(module, "RELEASED", tmp_path / "weights")
    return module


@pytest.fixture
def release(script, monkeypatch, tmp_path):
    """Calls the script as a shell would; returns the released file."""

    def call(*arguments: object) -> Path:
        words = ["small", *map(str, arguments), "--records", str(tmp_path / "records")]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
        script.main()
        return tmp_path / "weights" / "small.safetensors"

    return call


def finished_run(folder: Path, seed: int) -> Path:
    """The files of a finished run: an untrained network, as its last weights."""
    torch.manual_seed(seed)
    model = build_model("s2fpn_lite", num_classes=CLASSES)
    about = {"dataset": "roadscenes", "protocol": "roadscenes", "train_split": "train", "recipe": f"recipe-{seed}"}
    save_weights(model, folder / "last.safetensors", about)
    (folder / "result.json").write_text(json.dumps({"checkpoint": "last.safetensors", "val_miou": None, "seed": seed}))
    config = {"dataset": "auto", "lr": 0.1 * 3, "crop": [96, 128], "switches": {}, "seed": seed}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(f'{{"epoch": {epoch}, "loss": 0.1}}\n' for epoch in (1, 2)))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_mean_of_runs_is_released_in_half_precision(release, tmp_path, capsys):
    first, second = (finished_run(tmp_path / f"run{seed}", seed) for seed in (0, 1))
    before = contents(first), contents(second)
    path = release(f"early={first}", f"late={second}")

    states = [load_model(folder).state_dict() for folder in (first, second)]
    released = load_model(path).state_dict()
    for name, value in released.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2, rtol=1e-3, atol=1e-4)
    assert read_metadata(path)["averaged_over"] == ["recipe-0", "recipe-1"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() in capsys.readouterr().out
    assert path.stat().st_size < 10e6
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert (contents(first), contents(second)) == before


def test_runs_are_recorded_in_two_tables(script, tmp_path):
    runs = {name: finished_run(tmp_path / name, seed) for seed, name in enumerate(("early", "late"))}
    script.record_runs({"early": runs["early"]}, tmp_path)
    script.record_runs(runs, tmp_path)  # replaces the row of the first run
    table = pd.read_csv(tmp_path / "runs.csv")
    assert table["run"].tolist() == ["early", "late"]
    assert {each for each in table if each.startswith("config.")} == {"config.lr", "config.crop", "config.seed"}
    assert table["config.seed"].tolist() == table["result.seed"].tolist() == [0, 1]
    assert table["config.lr"].tolist() == [0.1 * 3] * 2
    assert table["config.crop"].map(json.loads).tolist() == [[96, 128]] * 2
    assert table["result.val_miou"].isna().all()
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert curves[["run", "epoch"]].apply(tuple, axis=1).tolist() == [(r, e) for r in runs for e in (1, 2)]


def test_one_run_is_released_unchanged(release, tmp_path):
    run = finished_run(tmp_path / "run", 0)
    path = release(f"only={run}")
    trained, released = load_model(run).state_dict(), load_model(path).state_dict()
    assert all(torch.equal(value, trained[name].half().to(value)) for name, value in released.items())
    assert "averaged_over" not in read_metadata(path)


def test_too_large_file_leaves_the_released_one(script, release, monkeypatch, tmp_path):
    """The limit is on all weights together; the file that is replaced does not count."""
    before = release(f"only={finished_run(tmp_path / 'run0', 0)}").read_bytes()
    size, run = len(before) / 1e6, finished_run(tmp_path / "run1", 1)
    monkeypatch.setattr(script, "TOTAL_MB", 1.5 * size)
    (tmp_path / "weights" / "other.safetensors").write_bytes(before)
    with pytest.raises(SystemExit, match=f"all weights have {2 * size:.1f} MB together"):
        release(f"only={run}")
    assert contents(tmp_path / "weights") == {"small.safetensors": before, "other.safetensors": before}
    (tmp_path / "weights" / "other.safetensors").unlink()
    assert release(f"only={run}").read_bytes() != before


def test_each_released_file_has_a_card_with_its_checksum():
    """Together at most 40 MB, so that a clone stays small."""
    files = sorted(RELEASED.glob("*.safetensors"))
    assert {path.stem for path in files} >= {"s2fpn_lite-camvid", "s2fpn_lite-camvid-train"}
    cards = {path.name: path.read_text() for path in RELEASED.glob("*.md")}
    for path in files:
        (card,) = (text for text in cards.values() if text.startswith(f"# Model card: {path.stem}\n"))
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
        assert f"{path.stat().st_size / 1e6:.1f} MB" in card
    assert sum(path.stat().st_size for path in files) < 40e6
