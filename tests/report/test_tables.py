"""Tables: provenance, protocols kept apart, repetitions, published numbers, LaTeX."""

import statistics

import pandas as pd
import pytest

from s2fpn_lib.report import tables


def row(seed=0, miou=0.5, **changes):
    return {
        "model": "s2fpn18",
        "revision": "v1",
        "protocol": "camvid-segnet-360x480",
        "split": "val",
        "seed": seed,
        "miou": miou,
        **changes,
    }


def test_two_protocols_never_share_a_column():
    mixed = pd.DataFrame([row(), row(1, protocol="roadscenes")])
    with pytest.raises(tables.ProtocolMixError, match="camvid-segnet-360x480; roadscenes"):
        tables.score_table(mixed)
    with pytest.raises(tables.ProtocolMixError):
        tables.beside_published(mixed)
    assert list(tables.split_by_protocol(mixed)) == ["camvid-segnet-360x480", "roadscenes"]
    with pytest.raises(ValueError, match="no column 'protocol'"):
        tables.over_seeds(pd.DataFrame([{"miou": 1}]))
    with pytest.raises(ValueError, match="1 rows name no protocol"):
        tables.over_seeds(pd.DataFrame([row(), row(protocol=None)]))


def test_published_rows_of_different_input_sizes_are_different_protocols():
    published = tables.load_published()
    with pytest.raises(tables.ProtocolMixError, match="camvid / 720x960 / 720x960"):
        tables.one_protocol(published[published["dataset"] == "camvid"])
    for rows in tables.split_by_protocol(published).values():
        tables.one_protocol(rows)
    shown = pd.concat(tables.published_tables().values())
    assert len(shown) == len(published)
    assert {"DDRNet-23-slim", "S2-FPN34M v2", "PIDNet-S"} <= set(shown["network"])


def test_published_numbers_have_sources():
    published = tables.load_published()
    assert len(published) == 27
    assert published["source"].str.len().gt(3).all()
    found = published.query("model == 'S2-FPN18' and revision == 'v2' and dataset == 'cityscapes'")
    assert found[["miou_percent", "fps"]].to_numpy().tolist() == [[76.7, 84.2]]


def test_mean_and_spread_over_seeds():
    frame = pd.DataFrame([row(0, 0.50), row(1, 0.53), row(2, 0.58), row(0, 0.7, model="s2fpn34")])
    table = tables.over_seeds(frame)
    assert table["runs"].tolist() == [3, 1]
    assert table["miou"].tolist() == pytest.approx([statistics.mean([0.5, 0.53, 0.58]), 0.7])
    assert table["miou_std"][0] == pytest.approx(statistics.stdev([0.5, 0.53, 0.58]))
    assert pd.isna(table["miou_std"][1])
    assert tables.score_table(frame)["mIoU %"].tolist() == ["53.67 ± 4.04", "70.00"]
    with pytest.raises(ValueError, match=r"seed \[1\] occurs more than once"):
        tables.over_seeds(pd.DataFrame([row(1), row(1, 0.6)]))


def test_partial_evaluations_are_no_repetitions_of_whole_ones():
    frame = pd.DataFrame([row(0, images=101), row(1, images=8)])
    assert tables.over_seeds(frame)["runs"].tolist() == [1, 1]


def test_beside_published_has_one_column_for_each_protocol():
    table = tables.beside_published(pd.DataFrame([row(0, 0.701), row(0, 0.4, model="s2fpn_lite")]))
    line = table.set_index("network").loc["S2-FPN18 v1"]
    assert line["ours: camvid-segnet-360x480, val"] == "70.10 (n 1)"
    assert line["paper abstract, test, 360x480"] == "69.6"
    assert line["author README, test, 360x480"] == "70.1"
    assert line["720x960, test, 720x960"] == ""
    assert table["network"].tolist().count("S2-FPN-Lite v1") == 1


def test_latex_escapes_and_keeps_the_numbers():
    text = tables.to_latex(tables.score_table(pd.DataFrame([row(0, 0.5), row(1, 0.6)])), "val_split & more", "tab:a")
    assert r"55.00 $\pm$ 7.07" in text
    assert r"mIoU \%" in text
    assert r"\caption{val\_split \& more}" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
