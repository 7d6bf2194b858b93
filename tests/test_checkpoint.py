"""Checkpoints: round trips, damage, full disks, files of other origin."""

import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
from pathlib import Path

import numpy as np
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
from s2fpn_lib.model.hub import read_weights
from s2fpn_lib.model.published import published_name
from s2fpn_lib.runs import WriteError, append_row


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


def two_states(folder: Path) -> tuple[Path, bytes]:
    """Small states of steps 1 and 12; the path and the bytes of the newer one."""
    for step in (1, 12):
        save_state(folder / "last.pt", {"model": {"weight": torch.full((3, 5), float(step))}, "step": step})
    return folder / "last.pt", (folder / "last.pt").read_bytes()


@pytest.mark.filterwarnings("ignore:training state")
def test_a_flip_of_any_byte_of_a_state_is_noticed(tmp_path):
    """Headers, pickled structure, tensors, padding, checksums, directory, and the digest itself."""
    path, whole = two_states(tmp_path)
    assert torch.load(path, weights_only=True)["step"] == 12
    assert len(whole) < 5000
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert load_state(path)["step"] == 1, f"byte {place} of {len(whole)}"


@pytest.mark.filterwarnings("ignore:training state")
def test_a_state_that_ends_early_or_late_is_noticed(tmp_path):
    path, whole = two_states(tmp_path)
    for length in (0, 1, 30, 100, len(whole) // 2, len(whole) - 100, len(whole) - 64, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert load_state(path)["step"] == 1, f"{length} bytes of {len(whole)}"
    for end in (b"\0", b"PK", bytes(512), whole):
        path.write_bytes(whole + end)
        assert load_state(path)["step"] == 1


def foreign_files(folder: Path) -> list[bytes]:
    """Weights, numbers, and rubbish under the name of a state."""
    torch.save({"weight": torch.zeros(2)}, folder / "weights.pth")
    torch.save([1, 2], folder / "list.pt")
    torch.save(torch.nn.Linear(2, 2), folder / "pickled.pt")
    np.savez(folder / "arrays.npz", a=np.zeros(3))
    safetensors.torch.save_file({"weight": torch.zeros(2)}, folder / "weights.safetensors")
    names = ("weights.pth", "list.pt", "pickled.pt", "arrays.npz", "weights.safetensors")
    return [*((folder / name).read_bytes() for name in names), b"rubbish", bytes(3000), b"PK\5\6" + bytes(18)]


def test_a_foreign_file_is_no_state(tmp_path):
    path, _ = two_states(tmp_path)
    for content in foreign_files(tmp_path):
        path.write_bytes(content)
        expected = r"last\.pt is damaged or foreign .*continuing from the state before it, previous\.pt at step 1: "
        with pytest.warns(UserWarning, match=expected) as told:
            assert load_state(path)["step"] == 1
        assert len(told) == 1
        assert "\n" not in str(told[0].message)


def test_the_repeated_steps_are_stated_as_far_as_they_are_known(tmp_path):
    path, whole = two_states(tmp_path)
    path.write_bytes(whole[:300] + b"?" + whole[301:])
    with pytest.warns(UserWarning, match="at step 1: 11 steps are repeated"):  # the tail is whole
        load_state(path)
    path.write_bytes(whole[:-30])
    with pytest.warns(UserWarning, match="at step 1: the steps after it are repeated"):
        load_state(path)
    append_row(tmp_path / "metrics.jsonl", {"epoch": 2, "step": 10})
    with pytest.warns(UserWarning, match="at step 1: at least 9 steps are repeated"):
        load_state(path)


def test_without_an_intact_state_there_is_an_error(tmp_path):
    path, whole = two_states(tmp_path)
    path.write_bytes(whole[:-1])
    (tmp_path / "previous.pt").write_bytes(b"rubbish")
    expected = r"last\.pt is damaged .*previous\.pt is damaged .*restore one of them, or delete the run directory"
    with pytest.raises(CheckpointError, match=expected):
        load_state(path)


@pytest.mark.filterwarnings("ignore:training state")
def test_recovery_keeps_the_intact_state_out_of_the_way_of_the_next_one(tmp_path):
    path, whole = two_states(tmp_path)
    path.write_bytes(whole[:-1])
    load_state(path, recover=True)
    assert load_state(path)["step"] == 1
    assert (tmp_path / "damaged.pt").read_bytes() == whole[:-1]
    save_state(path, state(20))
    assert load_state(tmp_path / "previous.pt")["step"] == 1


def test_states_of_earlier_versions_are_read_and_checked(tmp_path):
    path, _ = two_states(tmp_path)
    torch.save(state(30), path)  # without a digest
    assert load_state(path, "any run")["step"] == 30
    whole = path.read_bytes()
    path.write_bytes(whole[:9000] + b"????" + whole[9004:])
    with pytest.warns(UserWarning, match="its checksum is wrong"):
        assert load_state(path)["step"] == 1


class Tiny(torch.nn.Linear):
    config = {"name": "tiny", "size": [3, 5]}


def test_a_flip_of_any_byte_of_weights_is_noticed(tmp_path):
    path, model = tmp_path / "model.safetensors", Tiny(5, 3)
    save_weights(model, path, {"val_miou": 0.123, "classes": {1: "road", 10: "sky", 2: "car"}})
    whole = path.read_bytes()
    tensors, document = read_weights(path)
    assert document == {"val_miou": 0.123, "classes": {"1": "road", "10": "sky", "2": "car"}, "config": Tiny.config}
    assert torch.equal(tensors["weight"], model.weight)
    unnoticed = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            found, _ = read_weights(path)
        except (safetensors.SafetensorError, ValueError):
            continue
        unnoticed.append(place)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    # Only the names of the header's entry and of the digest's field are not covered: without them, the file is one of
    # an earlier version, or one that `load_model` refuses
    uncovered = [whole.index(b'"s2fpn"'), whole.index(b"sha256") - 2]
    assert {*unnoticed} <= {place + offset for place in uncovered for offset in range(10)}


def test_a_damaged_value_of_weights_is_an_error(model, tmp_path):
    path = tmp_path / "best.safetensors"
    save_weights(model, path, {})
    whole = bytearray(path.read_bytes())
    whole[-1000] ^= 16
    path.write_bytes(whole)
    for read in (load_model, lambda path: initialize(model, path)):
        with pytest.raises(CheckpointError, match=r"best\.safetensors is damaged .*checksum"):
            read(path)


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
    except WriteError as error:
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

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(WriteError, match=r"could not write .*best\.safetensors .*No space left"):
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
