"""Live curves: the figure of a run in a notebook's output, redrawn in place after each epoch."""

import time
from pathlib import Path
from typing import Any

from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from torch import nn

from s2fpn_lib.runs import RunDirectory, read_rows
from s2fpn_lib.viz.charts import training_curves

LARGEST_SHARE = 0.25  # of the time that goes into redrawing, where epochs are very short


class LiveCurves:
    """`on_epoch` of `train`, which displays the curves where it is created; papermill keeps the last figure.

    It is picklable. The processes of a training on several devices have no notebook and draw nothing. then: further
    functions with the arguments of `on_epoch`, called first.
    """

    def __init__(self, run_dir: str | Path, *then: Any):
        self.metrics, self.then = RunDirectory(run_dir).metrics, then
        self.shown = display(Markdown("*The curves appear after the first epoch.*"), display_id=True)
        self.draw()  # the epochs of an interrupted run

    def __call__(self, row: dict[str, Any], model: nn.Module) -> None:
        for each in self.then:
            each(row, model)
        if get_ipython() is not None and time.monotonic() >= self.due:
            self.draw()

    def draw(self) -> Figure | None:
        """Redraws the epochs in metrics.jsonl and returns the figure; None if there are none."""
        start = time.monotonic()
        figure = training_curves(rows) if (rows := read_rows(self.metrics)) else None
        if figure and self.shown:
            self.shown.update(figure)
        self.due = time.monotonic() + (time.monotonic() - start) / LARGEST_SHARE
        return figure
