"""The style of every figure: colors that stay distinct for color-blind readers, and unobtrusive axes."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from s2fpn_lib.runs import atomic_file

STYLE = matplotlib.rc_params_from_file(Path(__file__).with_name("figures.mplstyle"), use_default_template=False)
COLORS = tuple(STYLE["axes.prop_cycle"].by_key()["color"])
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, MUTED = STYLE["text.color"], STYLE["axes.edgecolor"]
GOOD, BAD = COLORS[0], COLORS[1]

# One meaning per color, in every notebook and in the inspector
ATTENTION_CMAP = "magma"  # attention of a v2 pixel over the columns, relative to uniform attention (1: uniform)
ATTENTION_RANGE = (0.1, 100.0)  # of its logarithmic scale, the same for all levels, pixels, and images
GATE_CMAP = "PRGn"  # v1: green where the gate of the average strip is larger, purple where that of the maximum strip is
CONTRIBUTION_CMAP = "BrBG"  # teal: speaks for the class, brown: speaks against it
CONFIDENCE_CMAP = "cividis"  # probability of the predicted class
SHARE_CMAP = "Blues"  # other shares and weights between 0 and 1
HIGHLIGHT = (255, 221, 0)  # outlines of what a picture is about


@contextmanager
def _style() -> Iterator[None]:
    """Applies the style, and closes the new figures: pyplot keeps them alive, and a notebook would show them twice."""
    before = set(plt.get_fignums())
    try:
        with plt.rc_context(STYLE):
            yield
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


styled = _style()  # decorator of the functions that draw a figure


def with_warning(figure: Figure, text: str) -> Figure:
    """The figure with a warning above it, in bold and vermilion; unchanged for an empty text."""
    if text:
        width = int(9 * figure.get_figwidth())  # characters of this size that fit
        figure.suptitle(textwrap.fill(text, width), color=BAD, weight="bold", fontsize=11)
    return figure


def save_figure(figure: Figure, path: str | Path) -> list[Path]:
    """Writes `path`.pdf (vector text with embedded fonts) and `path`.png atomically; equal figures give equal bytes."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # constrained layout would move the axes a little with each drawing
    written = []
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
        written.append(Path(f"{path}.{suffix}"))
        with plt.rc_context(STYLE), atomic_file(written[-1]) as file:
            figure.savefig(file, format=suffix, dpi=150, metadata=metadata)
    return written
