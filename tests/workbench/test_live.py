"""Live curves: what is displayed, when, and in which process."""

from __future__ import annotations

import pickle

import pytest

from s2fpn_lib.runs import append_row
from s2fpn_lib.workbench import sinks
from s2fpn_lib.workbench.sinks import LiveCurves


class Shown:
    """In the place of a notebook's output: keeps the epochs of each figure that is displayed there."""

    def __init__(self):
        self.epochs = []

    def update(self, figure):
        self.epochs.append(list(figure.axes[0].lines[0].get_xdata()))


@pytest.fixture
def shown(monkeypatch):
    output = Shown()
    monkeypatch.setattr(sinks, "display", lambda *objects, display_id: output)
    monkeypatch.setattr(sinks, "get_ipython", object)
    return output


def write_epoch(run_dir, epoch):
    row = {"epoch": epoch, "loss": 1.0 / epoch, "val_miou": None, "lr": 1e-3, "data_s": 0.1}
    run_dir.mkdir(exist_ok=True)
    append_row(run_dir / "metrics.jsonl", row)
    return row


def test_every_epoch_is_drawn_and_the_other_functions_are_called(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "LARGEST_SHARE", float("inf"))
    called = []
    curves = LiveCurves(tmp_path / "run", lambda row, model: called.append((row["epoch"], model)))
    assert shown.epochs == []
    for epoch in (1, 2):
        curves(write_epoch(tmp_path / "run", epoch), "model")
    assert shown.epochs == [[1], [1, 2]]
    assert called == [(1, "model"), (2, "model")]


def test_an_interrupted_run_shows_its_first_epochs_at_once(shown, tmp_path):
    write_epoch(tmp_path / "run", 1)
    LiveCurves(tmp_path / "run")
    assert shown.epochs == [[1]]


def test_short_epochs_are_not_all_drawn_but_the_last_figure_is_complete(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "LARGEST_SHARE", 1e-6)
    curves = LiveCurves(tmp_path / "run")
    curves.due = 0.0
    for epoch in (1, 2, 3):
        curves(write_epoch(tmp_path / "run", epoch), None)
    assert shown.epochs == [[1]]
    assert list(curves.draw().axes[0].lines[0].get_xdata()) == [1, 2, 3]
    assert shown.epochs == [[1], [1, 2, 3]]


def test_other_processes_draw_nothing(tmp_path, monkeypatch, capsys):
    curves = pickle.loads(pickle.dumps(LiveCurves(tmp_path / "run")))
    capsys.readouterr()
    curves(write_epoch(tmp_path / "run", 1), None)
    assert capsys.readouterr().out == ""
