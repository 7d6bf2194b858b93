"""Scores of single images, and the models that the inspector offers."""

from __future__ import annotations

import pytest

from s2fpn_lib.checkpoint import save_weights
from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.inspector.widget import image_score, model_choices
from s2fpn_lib.runs import write_json
from tests.inspecting import PROTOCOL, network


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("roadscenes", split="val", cache=False)


@pytest.fixture(scope="module")
def evaluation(dataset):
    return evaluate(network(), dataset, limit=2, progress=False)


def test_score_is_that_of_an_evaluation(dataset, evaluation):
    expected = evaluation.image_iou().nanmean(1).tolist()
    for index, miou in zip(evaluation.indices, expected, strict=True):
        assert image_score(network(), dataset, index) == pytest.approx(miou)


def test_released_weights_and_own_runs_of_the_same_classes_are_offered(tmp_path):
    for name, protocol in (("mine", "roadscenes"), ("other", "cityscapes-fine-1024x2048")):
        run = tmp_path / "train" / name
        run.mkdir(parents=True)
        save_weights(network(), run / "last.safetensors", {"protocol": protocol})
        write_json(run / "result.json", {})
    save_weights(network(), tmp_path / "unfinished" / "last.safetensors", {"protocol": "roadscenes"})
    (tmp_path / "train" / "mine" / "damaged.safetensors").write_text("")
    own = (str(tmp_path / "train" / "mine"), "train/mine")
    assert own in model_choices(tmp_path, PROTOCOL)
    assert not any("other" in path or "unfinished" in path for path, _ in model_choices(tmp_path, PROTOCOL))
    released = model_choices(tmp_path, get_protocol("camvid-segnet-360x480"))
    assert ("s2fpn_lite-camvid", "s2fpn_lite-camvid") in released
