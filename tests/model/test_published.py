"""Parity with the arrays of the published network, its checkpoint layout, and the errors for a wrong file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from s2fpn_lib.model import build_model, load_published
from s2fpn_lib.model.published import published_name
from tests.loading import load_file

PARITY = Path(__file__).parents[1] / "parity"
TOLERANCE = 2e-6

fill = load_file(PARITY / "fill.py")
reference = load_file(Path(__file__).parent / "published_reference.py")


def published_state(revision: str) -> dict[str, torch.Tensor]:
    state = {}
    for line in (PARITY / f"keys_{revision}_resnet18.txt").read_text().splitlines():
        name, shape = line.split(" ", 1)
        sizes = tuple(int(size) for size in shape.strip("()").split(",") if size.strip())
        dtype = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        state[name] = fill.filled(name, torch.zeros(sizes, dtype=dtype))
    return state


def arrays(model, image) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        pyramid = model.pyramid(image, aux=True)
        found = {"logits": model(image)}
    for level in range(4):
        found[f"apf{level + 1}"] = pyramid.apf[level]
        found[f"apf{level + 1}_aux"] = pyramid.auxiliary[level]
        found[f"gfu{4 - level}"] = pyramid.gfu[level]
    return found


@pytest.mark.parametrize("size", [(96, 160), (90, 122)])
@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_every_array_of_the_published_network(revision, size):
    height, width = size
    expected = np.load(PARITY / f"expected_{revision}_resnet18_{height}x{width}.npz")
    model = load_published(build_model("s2fpn18", revision=revision, num_classes=11), published_state(revision)).eval()
    found = arrays(model, fill.filled_input(height, width, batch=expected["logits"].shape[0]))
    assert set(found) == set(expected.files)
    differences = {name: float(np.abs(found[name].numpy() - expected[name]).max()) for name in expected.files}
    assert max(differences.values()) <= TOLERANCE, differences


@pytest.mark.parametrize("revision", ["v1", "v2"])
@pytest.mark.parametrize(
    ("name", "encoder", "size"),
    [("s2fpn18", "resnet18", (33, 71)), ("s2fpn34", "resnet34", (64, 96)), ("s2fpn34m", "resnet34", (47, 64)),
     ("s2fpn50", "resnet50", (64, 33))],
)  # fmt: skip
def test_other_encoders_and_odd_sizes_equal_the_reference(name, encoder, size, revision):
    model = build_model(name, revision=revision, num_classes=5).eval()
    state = {}
    for key, tensor in model.state_dict().items():
        published = published_name(key, revision)
        state[published] = fill.filled(published, tensor)
    load_published(model, state)
    image = fill.filled_input(*size, batch=2)
    expected = reference.PublishedReference(state, revision, encoder, bypass_maxpool=name.endswith("m"))(image)
    found = arrays(model, image)
    assert set(found) == set(expected)
    for key, array in expected.items():
        torch.testing.assert_close(
            found[key], array, rtol=0, atol=TOLERANCE, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.fixture(scope="module")
def state():
    return published_state("v1")


@pytest.fixture(scope="module")
def model():
    return build_model("s2fpn18", num_classes=11)


class TestLayout:
    @pytest.mark.parametrize("wrap", [
        lambda state: state,
        lambda state: {"epoch": 7, "model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"epoch": 7, "model": {f"module.{key}": value for key, value in state.items()}},
    ], ids=["bare", "dict", "module", "dict-module"])  # fmt: skip
    def test_every_wrapping_loads_the_same_weights(self, model, state, wrap, tmp_path):
        torch.save(wrap(state), tmp_path / "published.pth")
        for loaded in (model.head, model.apf3.ssam.fuse):  # by an earlier wrapping
            torch.nn.init.zeros_(loaded.weight)
        load_published(model, tmp_path / "published.pth")
        assert torch.equal(model.head.weight, state["classifier.fc.conv.weight"])
        assert torch.equal(model.apf3.ssam.fuse.weight, state["apf3.sa.fuse.conv.weight"])

    def test_each_of_our_entries_is_published(self):
        for revision in ("v1", "v2"):
            keys = set(published_state(revision))
            ours = {
                published_name(key, revision)
                for key in build_model("s2fpn18", revision=revision, num_classes=11).state_dict()
            }
            assert ours <= keys

    def test_missing_and_unknown_entries_are_named(self, model, state):
        broken = dict(state)
        del broken["gfu2.conv1.conv.weight"]
        broken["backbone.conv.weight"] = torch.zeros(1)
        before = model.head.weight.clone()
        with pytest.raises(
            KeyError, match=r"1 missing \(gfu2\.conv1\.conv\.weight\), 1 unknown \(backbone\.conv\.weight\)"
        ):
            load_published(model, broken)
        assert torch.equal(model.head.weight, before)

    def test_the_other_revision_is_rejected(self, model):
        with pytest.raises(KeyError, match="not a v1 checkpoint of s2fpn18"):
            load_published(model, published_state("v2"))

    def test_another_number_of_classes_is_named(self, state):
        with pytest.raises(ValueError, match="trained for 11 classes"):
            load_published(build_model("s2fpn18", num_classes=19), state)

    def test_heads_are_ignored_by_a_model_without_deep_supervision(self, state):
        model = load_published(build_model("s2fpn18", num_classes=11, deep_supervision=False), state)
        assert torch.equal(model.head.weight, state["classifier.fc.conv.weight"])

    def test_damaged_missing_and_pickled_files(self, model, state, tmp_path):
        path = tmp_path / "cut.pth"
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:100_000])
        with pytest.raises(RuntimeError, match=r"cut\.pth is damaged"):
            load_published(model, path)
        with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
            load_published(model, tmp_path / "absent.pth")
        torch.save({"epoch": 1, "model": model}, tmp_path / "pickled.pth")
        with pytest.raises(RuntimeError, match="never executed") as caught:
            load_published(model, tmp_path / "pickled.pth")
        assert "weights_only" not in str(caught.value)  # torch's advice would run it
        torch.save([state], tmp_path / "list.pth")
        with pytest.raises(RuntimeError, match="holds a list"):
            load_published(model, tmp_path / "list.pth")
        with pytest.raises(KeyError, match="1 is not the name of a tensor"):
            load_published(model, {"model": {1: torch.zeros(2)}})
