"""The stand-in: trained once, and anew where another recipe left one."""

from __future__ import annotations

from s2fpn_lib.config import TrainConfig
from s2fpn_lib.runs import RunDirectory, read_json, write_json
from s2fpn_lib.workbench.provenance import demo_checkpoint


def test_a_stand_in_of_another_recipe_is_replaced(tmp_path, monkeypatch):
    trained = []

    def fake_train(config, *, run_dir):
        RunDirectory(run_dir).claim(config.recipe(), TrainConfig().recipe())
        trained.append(config)
        return type("Result", (), {"run_dir": run_dir})

    monkeypatch.setattr("s2fpn_lib.workbench.provenance.train", fake_train)
    folder = demo_checkpoint(tmp_path)
    recipe = read_json(folder / "config.json")
    write_json(folder / "config.json", {**recipe, "epochs": recipe["epochs"] + 1})
    assert demo_checkpoint(tmp_path) == folder
    assert read_json(folder / "config.json") == recipe
    assert len(trained) == 2
