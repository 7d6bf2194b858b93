"""Paired differences equal those computed by hand; the chart shows them and every seed."""

import csv
import statistics

import pandas as pd
import pytest

from s2fpn_lib.report import comparison
from s2fpn_lib.runs import PROJECT


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
