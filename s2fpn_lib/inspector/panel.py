"""One model's part of the inspector: the picture to click on, the readout, and the four levels."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import ipywidgets as widgets

from s2fpn_lib.data import Protocol
from s2fpn_lib.inspector.click_canvas import ClickCanvas
from s2fpn_lib.inspector.numbers import LevelReadout, Readout, readout, revision_note
from s2fpn_lib.inspector.state import Inspection, State
from s2fpn_lib.inspector.views import render, render_level

LEVELS = 4


class ModelPanel(widgets.VBox):
    """Shows a state of one model's inspection; calls `chosen(y, x)` when a pixel is clicked or walked to."""

    def __init__(self, name: str, protocol: Protocol, chosen: Callable[[int, int], None]) -> None:
        self.name, self.protocol = name, protocol
        self.title, self.text, self.note = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.canvas = ClickCanvas(layout=widgets.Layout(flex="1 1 440px", min_width="280px"))
        self.canvas.observe(lambda change: chosen(*change["new"]), "pixel")
        self.text.layout = widgets.Layout(flex="1 1 280px", margin="0 0 0 14px")
        self.levels = [ClickCanvas(interactive=False) for _ in range(LEVELS)]
        self.captions = [widgets.HTML() for _ in range(LEVELS)]
        beside = widgets.Layout(flex="1 1 200px", min_width="180px")
        pairs = [widgets.VBox(pair, layout=beside) for pair in zip(self.levels, self.captions, strict=True)]
        wrap = widgets.Layout(flex_flow="row wrap", grid_gap="10px")
        top = widgets.Box([self.canvas, self.text], layout=wrap)
        layout = widgets.Layout(flex="1 1 400px", min_width="300px")
        super().__init__([self.title, top, self.note, widgets.Box(pairs, layout=wrap)], layout=layout)

    def show(self, state: State, inspection: Inspection) -> None:
        """Draws everything anew; nothing runs but indexing."""
        found = readout(state, inspection)
        with self.canvas.hold_sync():
            self.canvas.draw(render(state, inspection))
            self.canvas.size = inspection.size
            self.canvas.pixel = (state.y, state.x)
            self.canvas.label = f"{inspection.name}, {state.view} of {self.name}: click, or walk with the arrow keys"
            self.canvas.description = found.sentence()
        self.title.value = f"<b>{escape(self.name)}</b>"
        self.text.value = readout_html(found, self.protocol)
        self.note.value = f'<span class="s2fpn-muted">{escape(revision_note(inspection))}</span>'
        for index, (canvas, caption) in enumerate(zip(self.levels, self.captions, strict=True)):
            with canvas.hold_sync():
                canvas.draw(render_level(state, inspection, index))
                canvas.label = found.levels[index].sentence()
            caption.value = level_html(found.levels[index])


def readout_html(found: Readout, protocol: Protocol) -> str:
    """The chosen pixel: class, place, true class, and the most probable classes as bars."""
    truth = escape(found.truth) or "unknown"
    if found.truth in protocol.classes:
        truth += " (right)" if found.truth == found.prediction else " (the prediction is wrong)"
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td><span class="s2fpn-bar" style="width: {max(1, round(110 * p))}px; '
        f'background: rgb{protocol.palette[protocol.classes.index(name)]}"></span>{p:.1%}</td></tr>'
        for name, p in ((found.prediction, found.confidence), *found.others)
    )
    return (
        f'<div class="s2fpn-readout"><h4>{escape(found.prediction)}</h4>row {found.y}, column {found.x}<br>'
        f"true class: {truth}<table>{rows}</table></div>"
    )


def level_html(level: LevelReadout) -> str:
    """The words below a level's picture."""
    title = f'<b>{level.name}</b> <span class="s2fpn-muted">{level.size[0]}x{level.size[1]}</span>'
    decides = f"auxiliary head: {level.decides}" if level.decides else ""
    facts = [escape(fact) for fact in (level.weight(), level.attention(), decides) if fact]
    return f'<div class="s2fpn-level">{"<br>".join([title, *facts])}</div>'
