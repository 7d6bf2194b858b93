"""Figures as files: vector text with embedded fonts, and equal bytes for equal figures."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from s2fpn_lib.data import get_protocol
from s2fpn_lib.viz.charts import class_shares_bars, per_class_bars
from s2fpn_lib.viz.images import image_grid
from s2fpn_lib.viz.style import save_figure, with_warning

PROTOCOL = get_protocol("camvid-segnet-360x480")
TABLE = pd.DataFrame({"iou": np.linspace(0, 1, 11)}, index=PROTOCOL.classes)
FIGURES = {
    "log axis": lambda: class_shares_bars({"train": np.full(11, 1 / 11)}, PROTOCOL),
    "bars": lambda: with_warning(per_class_bars(TABLE, PROTOCOL), "seen"),
    "images": lambda: image_grid([[np.zeros((30, 40, 3), np.uint8)]], ["γ, ³⁄₄, −"], ["a"], PROTOCOL, 6.0),
}


@pytest.mark.parametrize("name", FIGURES)
def test_pdf_files_have_embedded_truetype_fonts(name, tmp_path):
    figure = FIGURES[name]()
    written = save_figure(figure, tmp_path / "a.b")
    assert [path.name for path in written] == ["a.b.pdf", "a.b.png"]
    pdf = written[0].read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf  # an embedded TrueType font
    assert b"/Type3" not in pdf  # publishers refuse Type 3 fonts
    assert written[1].read_bytes().startswith(b"\x89PNG")
    assert [a.read_bytes() for a in save_figure(figure, tmp_path / "again")] == [w.read_bytes() for w in written]
    assert plt.rcParams["pdf.fonttype"] == 3  # the reader's settings are untouched
