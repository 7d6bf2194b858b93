"""Class offsets against exhaustive search, a known bias, and the head of a network that must follow them."""

import itertools
from pathlib import Path

import pytest
import torch

from s2fpn_lib.checkpoint import load_model
from s2fpn_lib.data import open_dataset
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.metrics import ConfusionMatrix
from tests.loading import load_file

OFFSETS = load_file(Path(__file__).resolve().parents[1] / "scripts" / "release_weights.py")
GRID, add_offsets, fit_offsets = OFFSETS.GRID, OFFSETS.add_offsets, OFFSETS.fit_offsets
miou, sample_scores = OFFSETS.miou, OFFSETS.sample_scores


def noisy(classes=3, pixels=4000, seed=0):
    """Scores of a guesser that is often right, and labels of unequal shares."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([0.8, 0.15, 0.05][:classes]), pixels, True, generator=generator)
    scores = torch.randn(pixels, classes, generator=generator)
    scores[torch.arange(pixels), labels] += 1.5
    return scores, labels


def test_miou_is_that_of_the_confusion_matrix():
    scores, labels = noisy()
    offsets = torch.tensor([0.5, -0.25, 1.0])
    confusion = ConfusionMatrix(3)
    confusion.update((scores + offsets).argmax(1)[None, None], labels[None, None])
    assert miou(scores, labels, offsets) == pytest.approx(confusion.miou(), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_it_comes_close_to_the_best_of_all_offsets_on_the_grid(seed):
    scores, labels = noisy(seed=seed)
    start = miou(scores, labels)
    reached = miou(scores, labels, fit_offsets(scores, labels))
    # one class may stay at 0: only differences count
    best = max(miou(scores, labels, torch.tensor([0.0, *pair])) for pair in itertools.product(GRID.tolist(), repeat=2))
    assert start + 0.05 < best  # there is something to gain
    assert reached > best - 0.1 * (best - start)


def test_a_bias_that_was_put_in_is_taken_out():
    scores, labels = noisy()
    scores[torch.arange(len(labels)), labels] += 4.0  # nearly always right
    bias = torch.tensor([0.0, 4.0, 0.0])
    offsets = fit_offsets(scores + bias, labels)
    assert miou(scores + bias, labels, offsets) > 0.9 * miou(scores, labels) > miou(scores + bias, labels)
    assert (offsets[1] - offsets[[0, 2]]).max() < -1.5


def test_right_scores_and_classes_that_hardly_occur_are_left_alone():
    scores, labels = noisy()
    right = torch.nn.functional.one_hot(labels, 3).float()
    assert not fit_offsets(right, labels).any()
    labels = labels.clamp(max=1)
    labels[0] = 2  # one pixel of 4000
    assert fit_offsets(scores, labels)[2] == 0


@pytest.fixture(scope="module")
def released():
    return load_model("s2fpn_lite-camvid")


class Few:
    """The first scenes of RoadScenes' validation split."""

    def __init__(self, count=4):
        self.all, self.count = open_dataset("roadscenes", split="val"), count
        self.protocol = self.all.protocol

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.all[i]


def test_sampled_scores_are_the_networks_own(released):
    scenes = Few(2)
    scores, labels = sample_scores(released, scenes, every=5)
    whole, all_labels = sample_scores(released, scenes, every=1)
    assert len(labels) == pytest.approx(len(all_labels) / 25, rel=0.1)
    assert miou(whole, all_labels) == pytest.approx(
        evaluate(released, scenes, progress=False).confusion.miou(), abs=1e-9
    )
    image, label = scenes[0]
    kept = label != scenes.protocol.ignore_id
    with torch.no_grad():
        logits = released(released.preprocess(image[None]))[0][:, kept].T
    torch.testing.assert_close(whole[: len(logits)], logits)
    assert torch.equal(all_labels[: len(logits)], label[kept].long())
    assert scores.shape == (len(labels), 11)


def test_the_head_follows_the_offsets():
    model = load_model("s2fpn_lite-camvid")
    scenes = Few()
    offsets = torch.linspace(-1, 1, 11)
    before, _ = sample_scores(model, scenes)
    others = {name: value.clone() for name, value in model.state_dict().items() if name != "head.weight"}
    add_offsets(model, offsets, scenes)
    after, _ = sample_scores(model, scenes)
    moved = after - before
    assert (moved - offsets).abs().mean() < 0.15 * offsets.abs().mean()
    # along the offsets alone: every class moves by its offset times one number a pixel
    share = moved @ offsets / (offsets @ offsets)
    torch.testing.assert_close(moved, share[:, None] * offsets, atol=1e-3, rtol=1e-3)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in others.items())
