"""The user's own dataset through the whole workbench: training, scores, pictures, studies, export, and report."""

import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.attention.statistics import attention_statistics
from s2fpn_lib.checkpoint import load_model
from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.data.protocols import _own
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.inspector import State, readout, render
from s2fpn_lib.inspector.state import NamedModel, Picture, inspect
from s2fpn_lib.report.collect import class_table, collect_evaluations, collect_runs, results_table, scored_rows
from s2fpn_lib.report.comparison import compare_evaluations, save_samples
from s2fpn_lib.report.tables import class_score_table, run_table, score_table
from s2fpn_lib.runs import PROJECT
from s2fpn_lib.train import TrainConfig, train
from s2fpn_lib.viz.images import prediction_grid
from s2fpn_lib.workbench import studies
from s2fpn_lib.workbench.predict import network_size, predict
from s2fpn_lib.workbench.provenance import checkpoint_protocol, checkpoint_provenance, training_dataset
from s2fpn_lib.workbench.studies import read_study
from tests.loading import load_file

CLASSES = ("background", "road", "traffic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def street(folder):
    return load_file(PROJECT / "examples" / "make_own_data.py").make(folder / "data", size=(48, 64), train=6, val=4)


@pytest.fixture(scope="module")
def run(folder, street):
    changes = {"dataset": str(street), "encoder_weights": "", "crop": (32, 48), "epochs": 1, "batch_size": 3}
    return train(TrainConfig.preset("demo", **changes), results=folder / "results", progress=False)


@pytest.fixture
def another_process():
    """Forgets the own protocols, which are then known from files alone."""
    _own.clear()


def test_a_run_is_named_after_the_dataset(run, street):
    assert run.run_dir.name.startswith("street-s2fpn_lite-v1-")
    assert run.summary["dataset"] == "street"
    assert run.summary["data"]["val"] == open_dataset(street, split="val").digest()
    assert training_dataset(run.run_dir) == str(street)


def test_the_checkpoint_knows_the_classes(run, another_process):
    assert checkpoint_protocol(run.run_dir).classes == CLASSES
    _own.clear()
    assert get_protocol(load_model(run.run_dir).metadata["protocol"]).classes == CLASSES


def test_the_run_alone_is_in_the_results_table(run, folder, another_process):
    table = results_table(folder / "results")
    assert table.loc[0, ["dataset", "measured_by", "data"]].tolist() == [
        "street",
        "training",
        run.summary["data"]["val"],
    ]


def test_scores_tables_and_comparison(run, street, folder, another_process):
    data, model = open_dataset(street, split="val"), load_model(run.run_dir)
    evaluation = evaluate(model, data, progress=False)
    assert list(evaluation.per_class().index) == list(CLASSES)
    assert evaluation.row()["miou"] == pytest.approx(run.summary["val_miou"], abs=0.02)  # bfloat16 where it is fast
    for name in ("first", "second"):
        evaluation.provenance = {**checkpoint_provenance(run.run_dir), "seed": len(name)}
        evaluation.save(folder / "evaluations" / name / "evaluation.json")
        save_samples(folder / "evaluations" / name, model, data, [0])
    _own.clear()
    rows = scored_rows(collect_evaluations(folder / "evaluations"))
    assert score_table(rows)["mean IoU %"].str.contains("±").all()
    assert class_score_table(rows)["class"].tolist() == [*CLASSES, "mean IoU"]
    assert set(class_table(folder / "evaluations")["class"]) == set(CLASSES)
    figure = compare_evaluations({"a": "first", "b": "second"}, folder / "evaluations")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*CLASSES, "ignored"]


def test_predictions_have_the_palette(run, street, folder):
    protocol = checkpoint_protocol(run.run_dir)
    report = predict(load_model(run.run_dir), street.parent / "images" / "val", folder / "predicted", protocol)
    assert report.predicted == 4
    assert list(report.areas)[-3:] == list(CLASSES)
    colors = np.concatenate(
        [np.asarray(Image.open(each)).reshape(-1, 3) for each in (folder / "predicted" / "colour").glob("*")]
    )
    assert {tuple(color) for color in np.unique(colors, axis=0).tolist()} <= set(protocol.palette)


def test_predictions_see_the_scale_of_the_training(run):
    protocol = checkpoint_protocol(run.run_dir)  # 48x64: wider images are fitted into it, as the dataset's are
    assert network_size((480, 640), "protocol", protocol) == (48, 64)
    assert network_size((480, 960), "protocol", protocol) == (32, 64)
    assert network_size((480, 960), "protocol", get_protocol("camvid-segnet-360x480")) == (360, 720)


def test_attention_inspector_and_pictures(run, street):
    data, model = open_dataset(street, split="val"), load_model(run.run_dir)
    statistics = attention_statistics(model, data, limit=2)
    assert list(statistics.crb_by_class) == list(CLASSES)
    picture = Picture.of_dataset(data, 0, "protocol", data.protocol)
    inspection = inspect(NamedModel.load(run.run_dir), picture, data.protocol)
    found = readout(State(y=40, x=30), inspection)
    assert found.truth in (*CLASSES, "not labeled")
    assert not inspection.seen
    assert render(State(y=40, x=30), inspection).shape == (48, 64, 3)
    assert prediction_grid(model, data, [0]).legends


def test_the_inspector_says_that_an_image_was_trained_on(run, street):
    data = open_dataset(street, split="train")
    picture = Picture.of_dataset(data, 0, "protocol", data.protocol)
    inspection = inspect(NamedModel.load(run.run_dir), picture, data.protocol)
    assert "trained on" in inspection.warning
    assert "(trained on)" in readout(State(), inspection).sentence()
    caption = prediction_grid(load_model(run.run_dir), data, [0]).axes[0].texts[0].get_text()
    assert "was trained on" in caption


def test_a_study_depends_on_the_content_of_the_data(tmp_path):
    street = load_file(PROJECT / "examples" / "make_own_data.py").make(tmp_path, size=(48, 64), train=2, val=2)
    study = tmp_path / "parts.yaml"
    variants = "{full: {}, no-crb: {crb: false}}"
    study.write_text(f"question: what?\npreset: demo\ndatasets: [{street}]\nseeds: [0]\nvariants: {variants}\n")
    jobs = read_study(study)
    names = [job.name.rsplit("-", 1)[0] for job in jobs]
    assert names == ["full-street-s2fpn_lite-v1-s0", "no-crb-street-s2fpn_lite-v1-s0"]
    assert jobs[0].parameters["dataset"] == str(street)
    assert read_study(study) == jobs
    mask = next((tmp_path / "masks" / "val").iterdir())  # repaired in place
    Image.fromarray(np.asarray(Image.open(mask)) * 0).save(mask)
    studies._opened.cache_clear()  # another start of the study
    assert not {job.name for job in read_study(study)} & {job.name for job in jobs}


def test_export(run, folder):
    onnxruntime = pytest.importorskip("onnxruntime")
    from s2fpn_lib.inference import export_onnx, simplify

    model = load_model(run.run_dir)
    x = model.preprocess(torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8))
    export_onnx(simplify(model), folder / "own.onnx", x, dynamic=False)
    (logits,) = onnxruntime.InferenceSession(folder / "own.onnx").run(None, {"image": x.numpy()})
    assert logits.shape == (1, 3, 64, 96)


def test_a_change_of_the_splits_does_not_hide_what_was_trained_on(tmp_path):
    make = load_file(PROJECT / "examples" / "make_own_data.py").make
    path = make(tmp_path, size=(48, 64), train=6, val=2)
    other = "{images: images/val, labels: masks/val, label_suffix: _mask}"
    path.write_text(path.read_text().replace(other, "{every: 3}"))
    changes = {"dataset": str(path), "encoder_weights": "", "crop": (32, 48), "epochs": 1, "batch_size": 4}
    result = train(TrainConfig.preset("demo", **changes), run_dir=tmp_path / "run", progress=False)
    path.write_text(path.read_text().replace("{every: 3}", "{every: 2}"))  # images 0, 2, and 4 instead of 0 and 3
    scored = evaluate(load_model(result.run_dir), open_dataset(path, split="val"), progress=False)
    assert scored.settings["images_seen"] == 2


def test_a_fine_tuned_network_is_validated_on_images_that_were_trained_on(run, street, tmp_path, capsys):
    changes = {"dataset": str(street), "crop": (32, 48), "epochs": 1, "batch_size": 2}
    both = {"train_split": "val", "val_split": "train", "init_from": str(run.run_dir)}
    result = train(TrainConfig.preset("demo", **changes, **both), run_dir=tmp_path / "run", progress=False)
    assert result.summary["val_images_seen"] == 6
    assert "(6 of 6 images trained on)" in capsys.readouterr().out
    table = results_table(tmp_path)
    assert table.loc[0, "images_seen"] == 6
    assert "validation images trained on" in run_table(collect_runs(tmp_path))
