"""Samples come back from their file as they were, and are laid side by side.

Paired differences of a study equal those computed by hand; the chart shows them and every seed. Published numbers have
sources; a measured point is an accuracy and a speed of the same network and size.
"""

import csv
import statistics

import numpy as np
import pandas as pd
import pytest
import torch

from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.model import build_model
from s2fpn_lib.report import comparison
from s2fpn_lib.report.comparison import (
    SAMPLES,
    Sample,
    compare_evaluations,
    load_published,
    load_samples,
    measured_points,
    save_samples,
)
from s2fpn_lib.runs import PROJECT
from s2fpn_lib.viz.images import colorize, predicted


def sample(value, protocol="roadscenes"):
    picture = torch.full((3, 24, 32), value, dtype=torch.uint8)
    return Sample(picture, picture[0] % 11, (picture[0] + 1) % 11, protocol)


def test_samples_come_back(tmp_path):
    dataset = open_dataset("roadscenes", split="val", cache=False)
    model = build_model("s2fpn_lite", num_classes=11).eval()
    save_samples(tmp_path, model, dataset, [3, 0])
    found = load_samples(tmp_path)
    assert list(found) == [dataset.names[3], dataset.names[0]]
    image, label = dataset[3]
    kept = found[dataset.names[3]]
    assert kept.image.equal(image)
    assert kept.label.equal(label)
    assert kept.prediction.equal(predicted(model, image, dataset.protocol.size))
    assert kept.protocol == dataset.protocol.name


def test_no_file_and_a_damaged_one(tmp_path):
    assert load_samples(tmp_path) == {}
    (tmp_path / SAMPLES).write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match=r"samples\.npz is damaged"):
        load_samples(tmp_path)


def save(folder, **samples):
    """The file that `save_samples` writes, for samples without a network."""
    arrays = {f"{part}:{name}": getattr(each, part) for name, each in samples.items() for part in each._fields[:3]}
    folder.mkdir()
    np.savez(folder / SAMPLES, protocol=next(iter(samples.values())).protocol, **arrays)


def test_networks_side_by_side_on_the_images_that_all_have(tmp_path):
    save(tmp_path / "x", a=sample(1), b=sample(2))
    save(tmp_path / "y", b=sample(2), c=sample(3))
    figure = compare_evaluations({"one": "x", "none": "without-samples", "two": "y"}, tmp_path)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["image", "label", "one", "two"]
    shown = figure.axes[3].images[0].get_array()
    np.testing.assert_array_equal(shown, colorize(sample(2).prediction, get_protocol("roadscenes")))


def test_evaluations_that_cannot_be_compared(tmp_path):
    save(tmp_path / "x", a=sample(1))
    save(tmp_path / "y", b=sample(1))
    save(tmp_path / "z", a=sample(1, "camvid-segnet-360x480"))
    assert compare_evaluations({"one": "x"}, tmp_path) is None
    assert compare_evaluations({"one": "x", "two": "y"}, tmp_path) is None
    with pytest.raises(ValueError, match="refusing to compare pictures of 2 protocols"):
        compare_evaluations({"one": "x", "two": "z"}, tmp_path)


def row(variant, seed, miou, **changes):
    switches = "none" if variant == "full" else f"{variant.removeprefix('no-')}=False"
    fixed = {"study": "ablation", "protocol": "roadscenes", "split": "val", "images": 100, "model": "s2fpn_lite"}
    fixed |= {"revision": "v1", "switches": switches, "training_recipe": "r", "recipe_without_seed": variant}
    return {**fixed, "variant": variant, "seed": seed, "miou": miou, "parameters": 2_000_000, "gmacs": 1.5, **changes}


FULL = [row("full", 0, 0.60), row("full", 1, 0.64), row("full", 2, 0.70)]
SSAM = [row("no-ssam", 2, 0.69), row("no-ssam", 0, 0.55), row("no-ssam", 3, 0.10)]


def test_differences_are_over_common_seeds_only():
    table = comparison.paired_differences(pd.DataFrame(FULL + SSAM)).set_index("variant")
    differences = [0.69 - 0.70, 0.55 - 0.60]
    line = table.loc["no-ssam"]
    assert line["difference"] == pytest.approx(statistics.mean(differences))
    assert line["difference_std"] == pytest.approx(statistics.stdev(differences))
    assert (line["pairs"], line["runs"], line["lower"]) == (2, 3, 2)
    assert line["miou"] == pytest.approx(statistics.mean([0.69, 0.55, 0.10]))
    assert pd.isna(table.loc["full", "difference"])
    assert comparison.with_differences(pd.DataFrame(FULL + SSAM))["difference"].dropna().tolist() == pytest.approx(
        differences
    )


def test_each_revision_has_its_own_reference():
    other = [{**each, "revision": "v2", "miou": each["miou"] + 0.1} for each in FULL]
    table = comparison.paired_differences(pd.DataFrame(FULL + SSAM + other + [row("no-ssam", 0, 0.55, revision="v2")]))
    v2 = table[(table["variant"] == "no-ssam") & (table["revision"] == "v2")].iloc[0]
    assert v2["difference"] == pytest.approx(0.55 - 0.70)


def test_without_a_reference_there_is_no_difference():
    assert comparison.with_differences(pd.DataFrame(SSAM))["difference"].isna().all()
    assert comparison.paired_differences(pd.DataFrame(SSAM))["pairs"].tolist() == [0]


def test_what_is_not_comparable_is_refused():
    with pytest.raises(ValueError, match="refusing to put 2 protocols into one column"):
        comparison.paired_differences(pd.DataFrame([*FULL, row("no-ssam", 0, 0.5, protocol="camvid-segnet-360x480")]))
    with pytest.raises(ValueError, match=r"more than once with seed \[1\]"):
        comparison.with_differences(pd.DataFrame([*FULL, *SSAM, row("full", 1, 0.2)]))


def test_parts_keep_recipes_protocols_and_repetitions_apart():
    longer = row("full", 0, 0.9, training_recipe="longer", recipe_without_seed="longer")
    elsewhere = row("full", 0, 0.8, protocol="camvid-segnet-360x480")
    again = row("full", 1, 0.65, checkpoint_sha="new")
    frame = pd.DataFrame([*SSAM, *FULL, longer, elsewhere, again, row("full", 0, 0.1, study=None)])
    titled = comparison.comparable_parts(frame)
    assert sorted(titled) == [
        "ablation: CamVid (camvid-segnet-360x480), val",
        "ablation: RoadScenes, val, longer",
        "ablation: RoadScenes, val, r",
    ]
    parts = list(titled.values())
    assert sorted(len(part) for part in parts) == [1, 1, 6]
    largest = max(parts, key=len)
    assert largest["variant"].tolist() == ["full"] * 3 + ["no-ssam"] * 3
    assert largest["miou"].tolist()[:3] == [0.60, 0.65, 0.70]


def test_without_studies_there_are_no_parts():
    assert comparison.comparable_parts(pd.DataFrame()) == {}
    assert comparison.comparable_parts(pd.DataFrame([row("full", 0, 0.5, study=None)])) == {}


def test_the_table_to_print():
    table = comparison.ablation_table(pd.DataFrame(FULL + SSAM)).set_index("variant")
    assert table.loc["without SSAM", "difference to the full network, points"] == "-3.0 ± 2.8"
    assert table.loc["full", "difference to the full network, points"] == "–"
    assert table.loc["without SSAM", "seeds lower"] == "2 of 2"
    assert table.loc["full", ["mean IoU %", "parameters M", "GMACs", "runs"]].tolist() == [
        "64.7 ± 5.0",
        "2.00",
        "1.50",
        3,
    ]


def test_without_partners_there_are_no_difference_columns():
    assert "seeds lower" not in comparison.ablation_table(pd.DataFrame(SSAM))


def test_bars_are_means_and_dots_are_seeds():
    scores = {"full": [0.6, 0.7], "no-ssam": [0.58, 0.66], "no-crb": [0.61, 0.75]}
    frame = pd.DataFrame([row(name, seed, miou) for name, each in scores.items() for seed, miou in enumerate(each)])
    axis = comparison.ablation_bars(frame).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["without SSAM", "without CRB"]  # worst
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([-3, 3])
    dots = [sorted(collection.get_offsets()[:, 0]) for collection in axis.collections]
    assert dots == [pytest.approx([-4, -2]), pytest.approx([1, 5])]
    assert [text.get_text() for text in axis.texts] == ["-3.0 ± 1.4  (n 2)", "+3.0 ± 2.8  (n 2)"]
    one = comparison.ablation_bars(pd.DataFrame([row("full", 0, 0.5), row("no-ssam", 0, 0.4)])).axes[0]
    assert [bar.get_width() for bar in one.patches] == pytest.approx([-10])
    with pytest.raises(ValueError, match="no variant shares a seed"):
        comparison.ablation_bars(pd.DataFrame([row("full", 0, 0.5), row("no-ssam", 1, 0.5)]))


def test_a_committed_study_gives_the_numbers_of_its_readme():
    """Those of results/ablation-lite/README.md, and by hand from its runs.csv."""
    rows = comparison.recorded_study(PROJECT / "results" / "ablation-lite")
    camvid, roadscenes = comparison.comparable_parts(rows).values()
    table = comparison.ablation_table(camvid).set_index("variant")
    assert table.loc["full", "mean IoU %"] == "36.5 ± 3.2"
    assert table.loc["without SSAM", "difference to the full network, points"] == "-1.9 ± 1.7"
    assert table["seeds lower"].to_dict()["without SSAM"] == "3 of 3"
    assert comparison.ablation_table(roadscenes).set_index("variant").loc["without CRB", "mean IoU %"] == "55.8 ± 0.8"
    with (PROJECT / "results" / "ablation-lite" / "runs.csv").open() as file:
        lines = {line["run"]: line for line in csv.DictReader(file)}
    pair = [float(lines[f"{name}-camvid-s2fpn_lite-v1-s1"]["evaluation.miou_percent"]) for name in ("no-gfu", "full")]
    found = comparison.with_differences(camvid).query("variant == 'no-gfu' and seed == 1")["difference"].item()
    assert 100 * found == pytest.approx(pair[0] - pair[1])


SCORED = {
    "protocol": "camvid-segnet-360x480",
    "split": "val",
    "images": 101,
    "images_in_split": 101,
    "model": "s2fpn_lite",
    "revision": "v1",
    "switches": "none",
    "miou": 0.7,
}
TIMED = {
    "network": "s2fpn_lite",
    "revision": "v1",
    "height": 360,
    "width": 480,
    "batch": 1,
    "backend": "eager",
    "precision": "float32",
    "stage": "network",
    "fps": 40.0,
    "device": "CPU A",
}


def test_accuracy_meets_the_fastest_speed_on_each_device():
    scored = pd.DataFrame([SCORED, {**SCORED, "miou": 0.8}])
    compiled = {**TIMED, "backend": "compile", "fps": 50.0}
    disturbed = {**compiled, "fps": 90.0}  # measured before the last row
    timed = [TIMED, disturbed, compiled, {**TIMED, "device": "GPU B", "fps": 400.0}]
    points = measured_points(scored, pd.DataFrame(timed))
    assert points["fps"].tolist() == [50, 400]
    assert points["miou_percent"].tolist() == pytest.approx([75, 75])
    assert points.loc[0, ["dataset", "input", "method"]].tolist() == ["camvid", "360x480", "compile float32, network"]


@pytest.mark.parametrize(
    ("score", "speed"),
    [
        ({"images": 8}, {}),  # part of a split
        ({"switches": "ssam=False"}, {}),  # another network than the timed one
        ({"revision": "v2"}, {}),
        ({}, {"height": 512, "width": 1024}),
        ({}, {"batch": 8}),
        ({}, {"precision": "bf16"}),  # whose score is another
        ({}, {"stage": "end to end"}),
    ],
)
def test_other_measurements_make_no_point(score, speed):
    assert measured_points(pd.DataFrame([{**SCORED, **score}]), pd.DataFrame([{**TIMED, **speed}])).empty


def test_a_run_is_joined_with_the_speed_of_its_own_checkpoint():
    own = {**SCORED, "switches": "double_resolution=True", "checkpoint_sha": "abc"}
    timed = [{**TIMED, "checkpoint_sha": "abc", "fps": 9.0}, {**TIMED, "checkpoint_sha": "other", "fps": 60.0}, TIMED]
    assert measured_points(pd.DataFrame([own]), pd.DataFrame(timed))["fps"].tolist() == [9]
    plain = {**own, "switches": "none", "checkpoint_sha": "none of these"}
    assert measured_points(pd.DataFrame([plain]), pd.DataFrame(timed))["fps"].tolist() == [40]
    both = measured_points(pd.DataFrame([{**own, "switches": "none"}]), pd.DataFrame(timed))
    assert both["fps"].tolist() == [9], "one point, with the time of the checkpoint itself"


def test_speed_rows_with_a_remark_make_no_point():
    assert measured_points(pd.DataFrame([SCORED]), pd.DataFrame([{**TIMED, "cpu_share": 0.5}])).empty


def test_rows_with_their_own_score_are_points():
    row = {**TIMED, "miou": 0.6, "protocol": SCORED["protocol"], "split": "val", "precision": "int8"}
    row["stage"] = "end to end"
    points = measured_points(pd.DataFrame(), pd.DataFrame([row]))
    assert points[["miou_percent", "fps", "method"]].values.tolist() == [[60.0, 40.0, "eager int8, end to end"]]


def test_studies_are_points_of_their_own():
    scored = pd.DataFrame([{**SCORED, "study": None}, {**SCORED, "study": "sizes", "miou": 0.5}])
    points = measured_points(scored, pd.DataFrame([TIMED]))
    assert sorted(points["miou_percent"]) == pytest.approx([50, 70])
    assert set(points["method"]) == {"eager float32, network", "eager float32, network, study sizes"}


def test_published_numbers_have_sources():
    rows = load_published()
    assert len(rows) == 27
    assert rows["source"].str.len().gt(3).all()
    found = rows.query("model == 'S2-FPN18' and revision == 'v2' and dataset == 'cityscapes'")
    assert found[["miou_percent", "fps"]].to_numpy().tolist() == [[76.7, 84.2]]
