"""Training configurations: presets, refused mistakes, and that equal ones are equal."""

import json

import pytest
import torch

from s2fpn_lib.checkpoint import CheckpointError, save_weights
from s2fpn_lib.config import OPERATIONAL, PRESETS, PUBLISHED_OPTIONS, TrainConfig
from s2fpn_lib.model import build_model
from s2fpn_lib.runs import config_hash


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = TrainConfig.preset(name)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_published_camvid_is_the_published_recipe():
    config = TrainConfig.preset("published-camvid")
    published = {
        "optimizer": "adam",
        "lr": 3e-4,
        "weight_decay": 2e-4,
        "epochs": 150,
        "batch_size": 8,
        "crop": (360, 480),
        "warmup": 500,
        "warmup_start": 1 / 3,
        "poly_power": 0.9,
        "scales": (0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
        "flip": True,
        "photometric": 0.0,
        "normalization": "camvid-mean",
        "class_weights": 1.10,
        "aux_weight": 1.0,
        "aux_resolution": "label",
        "criterion": "cross_entropy",
        "train_split": "trainval",
        "checkpoint_rule": "last",
        "clip": 0.0,
        "ema": 0.0,
        "amp": "off",
    }
    assert {name: getattr(config, name) for name in published} == published


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(TypeError, match=r"no field 'epoch'\. Did you mean 'epochs'"):
        TrainConfig.preset("quick", epoch=3)
    with pytest.raises(ValueError, match=r"no preset 'quik'\. Did you mean 'quick'"):
        TrainConfig.preset("quik")
    for published, ours in PUBLISHED_OPTIONS.items():
        with pytest.raises(TypeError, match=f"no field '{published}'. It is called '{ours}' here"):
            TrainConfig.from_dict({published: 1})
        assert hasattr(TrainConfig(), ours)


def test_values_are_stored_as_declared():
    config = TrainConfig(crop=[64, 96], lr=1, scales=[1, 2])
    assert (config.crop, config.lr, config.scales) == ((64, 96), 1.0, (1.0, 2.0))
    assert config == TrainConfig(crop=(64, 96), lr=1.0, scales=(1.0, 2.0))
    assert TrainConfig(lr="3e-4", scale_range=["5e-1", 2]) == TrainConfig(lr=3e-4, scale_range=(0.5, 2.0))  # from YAML


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"lr": "fast"}, TypeError, "lr is 'fast'"),
        ({"lr": float("nan")}, ValueError, "lr is nan"),
        ({"momentum": 1.0}, ValueError, "momentum is 1.0"),
        ({"warmup_start": 0.0}, ValueError, "warmup_start is 0.0"),
        ({"poly_power": -1.0}, ValueError, "poly_power is -1.0"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"max_minutes": -1.0}, ValueError, "max_minutes is -1.0"),
        ({"epochs": 2.5}, TypeError, "epochs is 2.5"),
        ({"epochs": True}, TypeError, "epochs is True"),
        ({"flip": 1}, TypeError, "flip is 1"),
        ({"crop": (360,)}, TypeError, "crop is"),
        ({"epochs": 0}, ValueError, "epochs is 0"),
        ({"optimizer": "adamm"}, ValueError, "choose one of adam, adamw, sgd"),
        ({"ema": 1.0}, ValueError, "ema is 1.0"),
        ({"class_weights": 0.5}, ValueError, "class_weights is 0.5"),
        ({"photometric": 2.0}, ValueError, "photometric"),
        ({"distill_temperature": 0.0}, ValueError, "distill_temperature is 0.0"),
        ({"distill_weight": -1.0}, ValueError, "distill_weight is -1.0"),
        ({"val_split": "test"}, ValueError, "final measurement"),
        ({"train_split": "test:drive=0001TP"}, ValueError, "final measurement"),
        ({"train_split": "trainval"}, ValueError, 'use checkpoint_rule="last"'),
        ({"val_split": ""}, ValueError, "needs a val_split"),
    ],
)
def test_mistakes_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        TrainConfig(**wrong)


def test_the_recipe_excludes_operational_fields():
    base = TrainConfig()
    elsewhere = base.replace(device="cpu", workers=4, max_minutes=3.0, data_root="/data")
    assert base.recipe() == elsewhere.recipe()
    assert base.recipe() != base.replace(seed=1).recipe()
    assert not set(OPERATIONAL) & set(base.recipe())


def test_an_earlier_name_of_a_field_names_the_same_run():
    config = TrainConfig.from_dict({"colour_cast": 0.2})
    assert config == TrainConfig(color_cast=0.2)
    assert config.recipe()["colour_cast"] == 0.2  # as earlier versions stored it
    assert config_hash(TrainConfig().recipe()) == "5b40cd0d941f"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Three checkpoints: plain, of another network, and in the author's layout with CamVid's 11 classes."""
    folder = tmp_path_factory.mktemp("weights")
    save_weights(build_model("s2fpn_lite", num_classes=11), folder / "plain.safetensors", {})
    other = {"normalization": "camvid-mean", "double_resolution": True, "ssam": False}
    save_weights(build_model("s2fpn_lite", num_classes=11, **other), folder / "other.safetensors", {})
    torch.save({"classifier.fc.conv.weight": torch.zeros(11, 64, 1, 1)}, folder / "published.pth")
    return folder


def network(config) -> tuple:
    return config.model, config.revision, config.switches, config.normalization


OTHER = ("s2fpn_lite", "v1", {"double_resolution": True, "ssam": False}, "camvid-mean")


@pytest.mark.parametrize("given", [{}, {"model": ""}, {"revision": "v1"}, {"switches": {"ssam": False}}])
def test_what_is_not_given_is_that_of_the_checkpoint(weights, given):
    path = str(weights / "other.safetensors")
    assert network(TrainConfig(init_from=path, **given)) == OTHER
    for preset in ("demo", "published-camvid", "lite-camvid-trainval"):  # a preset's values are not the user's
        config = TrainConfig.preset(preset, init_from=path, **given)
        assert (network(config), config.encoder_weights) == (OTHER, "")
        config = TrainConfig.preset(preset).replace(seed=1).replace(init_from=path, encoder_weights="", **given)
        assert network(config) == OTHER
    config = TrainConfig.preset("quick", encoder_weights="", model="s2fpn18")
    with pytest.raises(ValueError, match="model is 's2fpn18'"):
        config.replace(init_from=path)
    assert network(config.replace(seed=1)) == ("s2fpn18", "v1", {}, "")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "s2fpn18"}, "model is 's2fpn18', but the network of '.*other.safetensors' has 's2fpn_lite'"),
        ({"revision": "v2"}, "revision is 'v2', but the network of '.*' has 'v1'"),
        ({"normalization": "lite"}, "normalization is 'lite', but the network of '.*' has 'camvid-mean'"),
        ({"switches": {"ssam": True}}, "ssam is True, but the network of '.*' has False: .* to init_changes"),
        ({"switches": {"crb": False}}, "crb is False, but the network of '.*' has True"),
        ({"init_changes": ["sam"]}, "init_changes holds 'sam'. Did you mean 'ssam'"),
        ({"encoder_weights": "imagenet"}, "init_from includes the encoder's weights"),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(weights, given, message):
    for make in (TrainConfig, TrainConfig(seed=1).replace, lambda **each: TrainConfig.preset("demo", **each)):
        with pytest.raises(ValueError, match=message):
            make(init_from=str(weights / "other.safetensors"), **given)


def test_a_deliberate_difference_is_named(weights):
    path = str(weights / "plain.safetensors")
    config = TrainConfig.preset("lite-camvid-double", init_from=path)
    assert network(config) == ("s2fpn_lite", "v1", {"double_resolution": True}, "")
    assert config == TrainConfig.preset("lite-camvid-double").replace(init_from=path).replace(workers=0)
    assert config.recipe() == {**TrainConfig.preset("lite-camvid-double").recipe(), "init_from": path}
    assert config_hash(TrainConfig.preset("lite-camvid-double").recipe()) == "97dc2a6f4006"  # of earlier runs
    config = TrainConfig(init_from=path, switches={"ssam": False}, init_changes=["ssam"])
    assert network(config) == ("s2fpn_lite", "v1", {"ssam": False}, "")


def test_a_stored_configuration_needs_no_weights(weights, tmp_path):
    path = tmp_path / "moved.safetensors"
    path.write_bytes((weights / "other.safetensors").read_bytes())
    config = TrainConfig(init_from=str(path))
    path.unlink()
    stored = {**json.loads(json.dumps(config.recipe())), "data": {"train": "0" * 12}}  # as in config.json
    assert TrainConfig.from_dict(stored) == config == config.replace(device="cpu").replace(device="auto")
    earlier = {**stored, "switches": {}, "normalization": ""}  # what an earlier version trained in fact
    assert network(TrainConfig.from_dict(earlier)) == ("s2fpn_lite", "v1", {}, "")
    with pytest.raises(CheckpointError, match=r"moved\.safetensors is neither a file nor"):
        TrainConfig(init_from=str(path))


def test_the_authors_layout_decides_only_the_normalization(weights, tmp_path):
    path = str(weights / "published.pth")
    assert network(TrainConfig(init_from=path)) == ("s2fpn18", "v1", {}, "camvid-mean")
    config = TrainConfig.preset("demo", init_from=path, revision="v2", normalization="cityscapes-mean")
    assert network(config) == ("s2fpn_lite", "v2", {}, "cityscapes-mean")
    (tmp_path / "cut.pth").write_bytes((weights / "published.pth").read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"cut\.pth is damaged"):
        TrainConfig(init_from=str(tmp_path / "cut.pth"))


def test_the_path_of_an_own_dataset_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TrainConfig(dataset="own/data.yaml").dataset == str(tmp_path / "own" / "data.yaml")
    assert TrainConfig(dataset="camvid").dataset == "camvid"
