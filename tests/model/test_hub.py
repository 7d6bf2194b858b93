"""A shared network gives the same logits, its card says what is recorded, and transfers are delegated."""

import json
import sys
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import yaml

from s2fpn_lib.checkpoint import load_model, read_metadata, save_weights
from s2fpn_lib.data import get_protocol
from s2fpn_lib.inference.optimize import simplify
from s2fpn_lib.model import S2FPN, build_model

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("s2fpn18", num_classes=3, normalization="camvid-mean", ssam=False).eval()


def header_and_text(card):
    _, header, text = card.split("---\n", 2)
    return yaml.safe_load(header), text


@pytest.mark.parametrize("load", [S2FPN.from_pretrained, load_model])
def test_a_folder_gives_the_same_network(model, tmp_path, load):
    assert model.save_pretrained(tmp_path / "net") == tmp_path / "net"
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == FILES
    loaded = load(tmp_path / "net")
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(loaded.preprocess(images), model.preprocess(images))
    assert loaded.config == model.config
    assert not loaded.training


def test_released_weights_keep_what_they_record(tmp_path):
    model = load_model("s2fpn_lite-camvid")
    model.save_pretrained(tmp_path / "net", license="cc-by-nc-4.0")
    loaded = S2FPN.from_pretrained(tmp_path / "net")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.metadata == json.loads(json.dumps(model.metadata)) == read_metadata(tmp_path / "net" / FILES[2])
    header, text = header_and_text((tmp_path / "net" / "README.md").read_text())
    assert header["license"] == "cc-by-nc-4.0"
    assert header["library_name"] == "s2fpn-workbench"
    assert "semantic-segmentation" in header["tags"]
    assert header["datasets"] == ["camvid"]
    protocol = get_protocol("camvid-segnet-360x480")
    for i, (name, color) in enumerate(zip(protocol.classes, protocol.palette, strict=True)):
        assert f"| {i} | {name} | {color} |" in text.replace("[", "(").replace("]", ")")
    assert protocol.name in text
    assert protocol.source in text
    assert "| camvid | train | 2 |\n| camvid | trainval | 2 |" in text
    assert "The checkpoint records no score." in text
    assert '| git_sha | "de65b344dd9777cc89793a86ed73ddd4d000aa44" |' in text
    assert "4.45 M" in text


@pytest.mark.parametrize(("split", "warned"), [("train", False), ("trainval", True), ("val", True)])
def test_the_card_of_a_run(model, tmp_path, split, warned):
    metadata = {"dataset": "shop", "train_split": split, "val_split": "val:every=2", "val_miou": 0.5, "seed": 3}
    save_weights(model, tmp_path / "best.safetensors", metadata)
    load_model(tmp_path / "best.safetensors").save_pretrained(tmp_path / "net")
    header, text = header_and_text((tmp_path / "net" / "README.md").read_text())
    assert (header["license"], header["datasets"]) == ("unknown", ["shop"])
    assert "50.00 % mean IoU on the split val:every=2" in text
    assert ("trained on images of this split" in text) == warned
    assert f"| shop | {split} | 1 |" in text
    assert "| seed | 3 |" in text
    assert "| protocol | not recorded |" in text
    assert "normalization" not in text.partition("## Classes")[0]
    assert "minus [99.63" in text


def test_what_nothing_records_is_called_unknown(model, tmp_path):
    model.save_pretrained(tmp_path / "net")
    header, text = header_and_text((tmp_path / "net" / "README.md").read_text())
    assert (header["license"], header["datasets"]) == ("unknown", [])
    assert (
        text.count("not recorded") == 8
    )  # protocol, size, ignored id, classes, images, pretraining, source, provenance


def test_folders_that_cannot_be_used(model, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"config\.json or README\.md of something else"):
        model.save_pretrained(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        S2FPN.from_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match="only a network of build_model"):
        simplify(model).save_pretrained(tmp_path / "simple")
    folder = model.save_pretrained(model.save_pretrained(tmp_path / "net"))  # its own folder again
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("camvid-mean", "imagenet"))
    with pytest.raises(RuntimeError, match=r"config\.json differs from the header"):
        S2FPN.from_pretrained(folder)
    (folder / "config.json").write_text(config)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-9])
    with pytest.raises(RuntimeError, match=r"net holds no network of this library, or a damaged one"):
        S2FPN.from_pretrained(folder)
    safetensors.torch.save_file({"head.weight": torch.zeros(3)}, folder / "model.safetensors")  # without a header
    with pytest.raises(RuntimeError, match="Missing key"):
        S2FPN.from_pretrained(folder)


@pytest.fixture
def uploads(monkeypatch):
    """The calls that an upload makes, without a network."""
    hub = pytest.importorskip("huggingface_hub")
    calls = []

    class FakeApi:
        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))
            return SimpleNamespace(repo_id=f"me/{repo_id}" if "/" not in repo_id else repo_id)

        def upload_folder(self, *, repo_id, folder_path, allow_patterns):
            names = sorted(path.name for path in folder_path.iterdir() if path.name in allow_patterns)
            calls.append((repo_id, folder_path, names))

    monkeypatch.setattr(hub, "HfApi", FakeApi)
    return calls


def test_upload(model, tmp_path, uploads, monkeypatch):
    model.save_pretrained(tmp_path / "net")
    assert uploads == []
    (tmp_path / "net" / "private.txt").touch()
    model.save_pretrained(tmp_path / "net", push_to_hub=True, private=True)
    private = {"private": True, "exist_ok": True}
    assert uploads == [("net", private), ("me/net", tmp_path / "net", FILES)]
    model.save_pretrained(tmp_path / "net", push_to_hub=True, repo_id="lab/street")
    assert uploads[2:] == [("lab/street", {**private, "private": None}), ("lab/street", tmp_path / "net", FILES)]
    assert "# lab/street\n" in (tmp_path / "net" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("lab/road", push_to_hub=True)
    assert uploads[4][0] == "lab/road"
    assert (tmp_path / "lab" / "road" / "model.safetensors").exists()


def test_download(model, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    folder = model.save_pretrained(tmp_path / "net")
    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, sorted(allow_patterns)))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    loaded = S2FPN.from_pretrained("lab/street", revision="v1")
    assert asked == [("lab/street", "v1", FILES)]
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_without_a_network_the_message_names_a_way(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"lab/street is no local folder.*hf download lab/street"):
        S2FPN.from_pretrained("lab/street")
    with pytest.raises(FileNotFoundError, match="a/b/c/d is no local folder"):
        S2FPN.from_pretrained("a/b/c/d")


def test_without_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 's2fpn-workbench\[hub\]'"):
        model.save_pretrained(tmp_path / "net", push_to_hub=True)
    assert not (tmp_path / "net").exists()
    with pytest.raises(ImportError, match=r"lab/street is no local folder.*\[hub\]"):
        S2FPN.from_pretrained("lab/street")
    S2FPN.from_pretrained(model.save_pretrained(tmp_path / "net"))  # a folder needs no package
