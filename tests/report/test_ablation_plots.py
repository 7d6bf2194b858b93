"""The ablation chart shows the paired differences and every seed."""

import pandas as pd
import pytest

from s2fpn_lib.report.ablation_plots import ablation_bars


def row(variant, seed, miou):
    return {"protocol": "roadscenes", "variant": variant, "seed": seed, "miou": miou}


def test_bars_are_means_and_dots_are_seeds():
    scores = {"full": [0.6, 0.7], "no-ssam": [0.58, 0.66], "no-crb": [0.61, 0.75]}
    frame = pd.DataFrame([row(name, seed, miou) for name, each in scores.items() for seed, miou in enumerate(each)])
    axis = ablation_bars(frame).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["no-ssam", "no-crb"]  # worst first
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([-3, 3])
    dots = [sorted(collection.get_offsets()[:, 0]) for collection in axis.collections]
    assert dots == [pytest.approx([-4, -2]), pytest.approx([1, 5])]
    assert [text.get_text() for text in axis.texts] == ["-3.00 ± 1.41  (n 2)", "+3.00 ± 2.83  (n 2)"]


def test_nothing_to_compare_with():
    with pytest.raises(ValueError, match="no variant shares a seed"):
        ablation_bars(pd.DataFrame([row("full", 0, 0.5), row("no-ssam", 1, 0.5)]))
