"""Checkpoints: round trips, damage, full disks, files of other origin."""

import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import re
import resource
from pathlib import Path

import pytest
import safetensors.torch
import torch

from s2fpn_lib import checkpoint
from s2fpn_lib.checkpoint import (
    CheckpointError,
    initialize,
    load_model,
    load_state,
    names_seen,
    published_arguments,
    read_metadata,
    save_state,
    save_weights,
    training_history,
)
from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.model import build_model
from s2fpn_lib.model.published import published_name


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("s2fpn_lite", num_classes=3, normalization="camvid-mean", ssam=False)


def test_weights_round_trip(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(model.to(memory_format=torch.channels_last), path, {"protocol": "roadscenes", "epoch": 4})
    loaded = load_model(path)
    assert not loaded.training
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    metadata = read_metadata(path)
    assert (metadata["protocol"], metadata["epoch"], metadata["config"]["ssam"]) == ("roadscenes", 4, False)
    first = path.read_bytes()
    save_weights(model, path, {"epoch": 4, "protocol": "roadscenes"})
    assert path.read_bytes() == first


def test_damaged_weights_are_named(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(model, path, {})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model(path)


def test_weights_of_another_origin_or_model(model, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="does not say which model"):
        load_model(path)
    document = json.dumps({"config": model.config})
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, {checkpoint.METADATA_KEY: document})
    with pytest.raises(CheckpointError, match=r"other\.safetensors do not fit"):
        load_model(path)
    with pytest.raises(TypeError, match="records its own model"):
        load_model(path, name="s2fpn18")


def test_released_weights_load_by_name(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "RELEASED", tmp_path)
    save_weights(model, tmp_path / "s2fpn_lite-camvid.safetensors", {})
    assert load_model("s2fpn_lite-camvid").config == model.config
    with pytest.raises(CheckpointError, match="Did you mean 's2fpn_lite-camvid'"):
        load_model("s2fpn_lite-camvi")


def test_a_run_directory_loads_its_chosen_checkpoint(model, tmp_path):
    with pytest.raises(CheckpointError, match="is it a run directory"):
        load_model(tmp_path)
    save_weights(model, tmp_path / "last.safetensors", {})
    assert load_model(tmp_path).num_classes == 3
    save_weights(build_model("s2fpn_lite", num_classes=5), tmp_path / "best.safetensors", {})
    assert load_model(tmp_path).num_classes == 5
    (tmp_path / "result.json").write_text('{"checkpoint": "last.safetensors"}')
    assert load_model(tmp_path).num_classes == 3


def test_the_authors_layout_needs_a_model_name_and_runs_no_code(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (print, ("this must not run",))

    path = tmp_path / "model_150.pth"
    torch.save({"epoch": 1, "model": Malicious()}, path)
    with pytest.raises(CheckpointError, match='name="s2fpn18"'):
        load_model(path)
    with pytest.raises(RuntimeError, match=r"model_150\.pth"):
        load_model(path, name="s2fpn18", num_classes=3)


def test_a_run_that_stopped_before_its_first_validation_gives_its_last_weights(model, tmp_path):
    save_weights(model, tmp_path / "last.safetensors", {})
    (tmp_path / "result.json").write_text('{"checkpoint": "best.safetensors"}')
    with pytest.warns(UserWarning, match=r"best\.safetensors is missing.*the last weights of the run are used"):
        assert load_model(tmp_path).num_classes == 3


def test_a_model_keeps_its_metadata_and_makes_its_protocol_known(model, tmp_path):
    own = dataclasses.replace(get_protocol("roadscenes"), name="shop-60x80-abcd", dataset="shop", size=(60, 80))
    metadata = {"dataset": "shop", "protocol_definition": json.loads(json.dumps(own.to_dict()))}
    save_weights(model, tmp_path / "model.safetensors", metadata)
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.metadata == {"config": model.config, **metadata}
    assert get_protocol("shop-60x80-abcd") == own


def heads(model) -> set[str]:
    """Names of the parameters of the output layers."""
    return {name for name in model.state_dict() if re.match(r"head\.|auxiliary\.\d\.2\.", name)}


def same(first, second) -> set[str]:
    """Names of the entries that are equal in two networks."""
    first, second = first.state_dict(), second.state_dict()
    return {name for name in first if torch.equal(first[name], second.get(name, torch.zeros(0)).to(first[name]))}


@pytest.mark.parametrize("half", [False, True])
def test_fine_tuning_for_other_classes_keeps_all_but_the_heads(model, tmp_path, half):
    save_weights(model, tmp_path / "model.safetensors", {}, half=half)
    source = load_model(tmp_path / "model.safetensors")
    new = build_model("s2fpn_lite", num_classes=5, ssam=False)
    before = {name: new.state_dict()[name].clone() for name in heads(new)}
    assert set(initialize(new, tmp_path / "model.safetensors")) == heads(new)
    assert len(heads(new)) >= 5
    assert set(new.state_dict()) - heads(new) <= same(new, source)
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in before.items())
    assert initialize(build_model("s2fpn_lite", num_classes=3, ssam=False), tmp_path / "model.safetensors") == []


@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_fine_tuning_from_the_authors_layout(tmp_path, revision):
    source = build_model("s2fpn18", revision=revision, num_classes=4)
    published = {published_name(name, revision): value for name, value in source.state_dict().items()}
    torch.save({"epoch": 150, "model": published}, tmp_path / "model_150.pth")
    alike = build_model("s2fpn18", revision=revision, num_classes=4)
    assert initialize(alike, tmp_path / "model_150.pth") == []
    assert same(alike, source) == set(source.state_dict())
    other = build_model("s2fpn18", revision=revision, num_classes=5)
    assert set(initialize(other, tmp_path / "model_150.pth")) == heads(other)
    assert set(other.state_dict()) - heads(other) <= same(other, source)
    for wrong in (build_model("s2fpn_lite", num_classes=4), build_model("s2fpn34", revision=revision, num_classes=4)):
        with pytest.raises(
            CheckpointError, match=r"model_150\.pth: this is not a .* checkpoint of .* missing .*Give its model"
        ):
            initialize(wrong, tmp_path / "model_150.pth")


def test_weights_that_do_not_fit_or_cannot_be_read_are_named(model, tmp_path):
    save_weights(model, tmp_path / "model.safetensors", {})
    wider = build_model("s2fpn_lite", num_classes=3, double_resolution=True)
    assert initialize(wider, tmp_path / "model.safetensors") == sorted(
        wider.state_dict().keys() - model.state_dict().keys()
    )
    other = build_model("s2fpn18", num_classes=3)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors does not fit s2fpn18 v1 \(.* instead of .* more\): give"
    ):
        initialize(other, tmp_path / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    (tmp_path / "cut.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"cut\.pth is damaged"):
        initialize(other, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"none\.pth is neither a file"):
        initialize(other, tmp_path / "none.pth")


def entry(dataset, split):
    return {"dataset": dataset, "split": split}


def test_the_training_history_of_earlier_files_is_read_from_their_words():
    words = "imagenet, then camvid train, then camvid trainval:drive!=0016E5"
    words += "; taught by a network trained on roadscenes train"
    metadata = {"pretraining": words, "dataset": "camvid", "train_split": "trainval"}
    assert training_history(metadata) == [
        entry("camvid", "train"),
        entry("camvid", "trainval:drive!=0016E5"),
        entry("roadscenes", "train"),
        entry("camvid", "trainval"),
    ]
    assert training_history({"pretraining": "none", "dataset": "shop", "train_split": "train"}) == [
        entry("shop", "train")
    ]
    assert training_history({}) == []
    assert training_history({**metadata, "training": [entry("shop", "train")]}) == [entry("shop", "train")]
    assert training_history(load_model("s2fpn_lite-camvid").metadata)[-1] == entry("camvid", "trainval")


def images_seen(metadata, dataset):
    return len(names_seen(metadata, dataset) & {*dataset.names})


def test_images_seen_in_training_are_counted_by_their_names(monkeypatch):
    trained = {"training": [entry("roadscenes", "train:drive=park"), entry("camvid", "trainval")]}
    train, val, both = (open_dataset("roadscenes", None, each, cache=False) for each in ("train", "val", "trainval"))
    in_park = train.drives.count("park")
    assert 0 < in_park < len(train)
    assert [images_seen(trained, dataset) for dataset in (train, val, both)] == [in_park, 0, in_park]
    assert images_seen({}, train) == 0

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(checkpoint, "open_dataset", missing)  # then the splits' words decide
    assert [images_seen(trained, dataset) for dataset in (train, val, both)] == [len(train), 0, len(both)]


def state(step: int) -> dict:
    torch.manual_seed(step)
    return {"model": {"weight": torch.randn(300, 300)}, "step": step, "best": None, "this_epoch": [0.5, 1.5]}


def test_states_round_trip_and_the_previous_one_is_kept(tmp_path):
    path = tmp_path / "last.pt"
    assert load_state(path) is None
    for step in (1, 2, 3):
        save_state(path, state(step))
    loaded = load_state(path)
    assert loaded["step"] == 3
    assert loaded["best"] is None
    assert torch.equal(loaded["model"]["weight"], state(3)["model"]["weight"])
    assert load_state(tmp_path / "previous.pt")["step"] == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda _: b""])
def test_a_damaged_state_falls_back_to_the_previous_one(tmp_path, damage):
    path = tmp_path / "last.pt"
    save_state(path, state(1))
    save_state(path, state(2))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=r"last\.pt is damaged .* continuing from .* previous\.pt"):
        assert load_state(path)["step"] == 1
    (tmp_path / "previous.pt").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged .*previous\.pt is damaged"):
        load_state(path)


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path):
    path = tmp_path / "last.pt"
    save_state(path, state(1))
    path.rename(tmp_path / "previous.pt")
    with pytest.warns(UserWarning, match=r"last\.pt is missing"):
        assert load_state(path)["step"] == 1


def _save_with_limited_file_size(path: Path, sender: multiprocessing.connection.Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    try:
        save_state(path, state(3))
    except CheckpointError as error:
        sender.send(str(error))


def test_a_full_disk_is_a_clear_error_and_keeps_both_states(tmp_path):
    path = tmp_path / "last.pt"
    save_state(path, state(1))
    save_state(path, state(2))
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    context = multiprocessing.get_context("fork")
    message, sender = context.Pipe(duplex=False)
    process = context.Process(target=_save_with_limited_file_size, args=(path, sender))
    process.start()
    assert message.poll(60)
    text = message.recv()
    process.join()
    assert f"could not write {path}" in text
    assert "File too large" in text
    assert "make room" in text
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
    assert load_state(path)["step"] == 2


def test_a_full_disk_keeps_earlier_weights(model, tmp_path, monkeypatch):
    path = tmp_path / "best.safetensors"
    save_weights(model, path, {"epoch": 1})

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "atomic_file", full_disk)
    with pytest.raises(CheckpointError, match=r"could not write .*best\.safetensors .*No space left"):
        save_weights(model, path, {"epoch": 2})
    assert read_metadata(path)["epoch"] == 1


@pytest.mark.parametrize(
    ("protocol", "normalization"),
    [("cityscapes-fine-1024x2048", "cityscapes-mean"), ("camvid-segnet-360x480", "camvid-mean"), ("roadscenes", None)],
)
def test_arguments_of_published_checkpoints(protocol, normalization):
    arguments = published_arguments("runs/model_150.pth", "SSFPN", "v2", get_protocol(protocol))
    classes = get_protocol(protocol).num_classes
    expected = {"name": "s2fpn18", "revision": "v2", "num_classes": classes, "normalization": normalization}
    assert arguments == expected
    assert published_arguments("s2fpn_lite-camvid", "SSFPN", "v2", get_protocol(protocol)) == {}


def test_half_precision_weights_are_half_the_size(model, tmp_path):
    save_weights(model, tmp_path / "full.safetensors", {})
    save_weights(model, tmp_path / "half.safetensors", {}, half=True)
    sizes = [(tmp_path / name).stat().st_size for name in ("half.safetensors", "full.safetensors")]
    assert sizes[0] < 0.51 * sizes[1]
    loaded = load_model(tmp_path / "half.safetensors")
    for name, value in model.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-6), name
