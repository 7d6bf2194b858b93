"""Every table goes out as CSV, LaTeX and HTML; tables of things that are gone go with them."""

import pandas as pd
import pytest

from s2fpn_lib.report.export_table import export_table, only_new_files


def test_one_table_in_three_formats(tmp_path):
    table = pd.DataFrame({"network": ["S2-FPN18 v1"], "mIoU %": ["70.10 ± 0.50"]})
    export_table(table, tmp_path, "scores: camvid, val/360x480", "Scores & more")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"scores-camvid-val-360x480.{kind}" for kind in ("csv", "html", "tex")
    ]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "scores-camvid-val-360x480.csv"), table, check_dtype=False)
    assert r"70.10 $\pm$ 0.50" in (tmp_path / "scores-camvid-val-360x480.tex").read_text()
    page = (tmp_path / "scores-camvid-val-360x480.html").read_text()
    assert "70.10 ± 0.50" in page
    assert "Scores &amp; more" in page


def test_old_tables_go_unless_something_failed(tmp_path):
    table = pd.DataFrame({"a": [1]})
    for name in ("kept", "gone"):
        export_table(table, tmp_path, name, "")
    with pytest.raises(OSError, match="full"), only_new_files(tmp_path):
        raise OSError("disk full")
    assert (tmp_path / "gone.csv").exists()
    with only_new_files(tmp_path):
        export_table(table, tmp_path, "kept", "")
    assert {path.stem for path in tmp_path.iterdir()} == {"kept"}
