"""The checkpoint that a score belongs to."""

import hashlib
import json
import os

from s2fpn_lib.checkpoint import load_model, save_weights
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.model import build_model
from s2fpn_lib.workbench.provenance import (
    checkpoint_provenance,
    describe_switches,
    newest_run,
    recipe_hashes,
)


def run_folder(root, name, when):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "last.safetensors").touch()
    (folder / "result.json").write_text(json.dumps({"checkpoint": "last.safetensors", "checkpoint_rule": "last"}))
    os.utime(folder / "result.json", (when, when))
    return folder


def test_newest_run_has_finished_and_has_weights(tmp_path):
    assert newest_run(tmp_path) is None
    new = run_folder(tmp_path, "train/a", 800)
    run_folder(tmp_path, "train/b", 700)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text("{}")
    assert newest_run(tmp_path) == new
    (run_folder(tmp_path, "train/records", 1000) / "last.safetensors").unlink()
    assert newest_run(tmp_path) == new
    variant = run_folder(tmp_path, "studies/by-hand/no-ssam/run", 1100)
    run_folder(tmp_path, "studies/search-first-1234/5678", 1200)
    assert newest_run(tmp_path) == new
    assert newest_run(tmp_path / "studies" / "by-hand") == variant


def test_provenance_describes_the_chosen_file(tmp_path):
    folder = run_folder(tmp_path, "run", 1)
    model = build_model("s2fpn_lite", num_classes=11, ssam=False)
    path = folder / "last.safetensors"
    save_weights(model, path, {"dataset": "camvid", "seed": 7, "pretraining": "imagenet", "secret": 1})
    row = checkpoint_provenance(folder)
    assert row == checkpoint_provenance(path)
    assert row["checkpoint"] == "run/last.safetensors"
    assert row["checkpoint_sha"] == hashlib.sha256(path.read_bytes()).hexdigest()[:10]
    assert (row["checkpoint_rule"], row["trained_on"], row["seed"], row["pretraining"]) == (
        "last",
        "camvid",
        7,
        "imagenet",
    )
    assert (row["model"], row["revision"], row["switches"]) == ("s2fpn_lite", "v1", "ssam=False")
    assert "secret" not in row


def test_a_shared_model_keeps_its_origin_and_has_no_recipe(tmp_path):
    folder = load_model("s2fpn_lite-camvid").save_pretrained(tmp_path / "net")
    row, released = checkpoint_provenance(folder), checkpoint_provenance("s2fpn_lite-camvid")
    assert row["checkpoint"] == "net/model.safetensors"
    assert row.keys() == released.keys()
    assert {key for key in row if row[key] != released[key]} == {"checkpoint", "checkpoint_sha"}


def test_published_checkpoint_is_described_by_its_network(tmp_path):
    path = tmp_path / "model_150.pth"
    path.write_bytes(b"published")
    assert "model" not in checkpoint_provenance(path)
    row = checkpoint_provenance(path, build_model("s2fpn18", revision="v2", num_classes=19).config)
    assert (row["model"], row["revision"], row["switches"]) == ("s2fpn18", "v2", "none")
    assert "trained_on" not in row


def test_hashes_tell_repetitions_and_networks_trained_alike():
    recipe = TrainConfig(dataset="roadscenes").recipe()
    hashes = recipe_hashes(recipe)
    assert recipe_hashes(TrainConfig(dataset="roadscenes", seed=5).recipe()) == hashes
    variant = recipe_hashes(TrainConfig(dataset="roadscenes", model="s2fpn34", switches={"ssam": False}).recipe())
    assert variant["training_recipe"] == hashes["training_recipe"]
    assert variant["recipe_without_seed"] != hashes["recipe_without_seed"]
    longer = recipe_hashes(TrainConfig(dataset="roadscenes", epochs=151).recipe())
    assert longer["training_recipe"] != hashes["training_recipe"]
    varied = recipe_hashes(TrainConfig(dataset="roadscenes", epochs=151).recipe(), ["epochs"])
    assert varied["training_recipe"] == recipe_hashes(recipe, ["epochs"])["training_recipe"]
    assert varied["recipe_without_seed"] == longer["recipe_without_seed"]
    stored = recipe | {"colour_cast": 0.5}  # the name in config.json
    for name in ("color_cast", "colour_cast"):
        assert recipe_hashes(stored, [name])["training_recipe"] == recipe_hashes(recipe, [name])["training_recipe"]


def test_switches_in_words():
    assert describe_switches({"ssam": True, "strip_axis": "height"}) == "none"
    assert describe_switches({"strip_axis": "width", "crb": False}) == "crb=False strip_axis=width"
