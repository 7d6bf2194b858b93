"""The parts of the inspector: the clickable picture, the panel of one model, and the controls (layout: widget.css)."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import anywidget
import ipywidgets as widgets
import traitlets

from s2fpn_lib.data import Protocol, SegmentationDataset
from s2fpn_lib.inspector.numbers import Readout, pin_readouts, readout, revision_note
from s2fpn_lib.inspector.state import VIEWS, Inspection, State
from s2fpn_lib.inspector.views import jpeg, render, render_level

HERE = Path(__file__).parent


class ClickCanvas(anywidget.AnyWidget):
    """Shows `picture`; a click, a touch, or an arrow key sets `pixel`, which ipywidgets.Image cannot do."""

    _esm = HERE / "click_canvas.js"
    _css = HERE / "click_canvas.css"
    picture = traitlets.Bytes(b"").tag(sync=True)  # JPEG, drawn as wide as its container
    size = traitlets.Tuple((1, 1)).tag(sync=True)  # (H, W) of the image; the picture may be smaller
    pixel = traitlets.Tuple((0, 0)).tag(sync=True)  # (y, x) of the chosen pixel of the image
    label = traitlets.Unicode("").tag(sync=True)  # for screen readers: what the picture shows
    description = traitlets.Unicode("").tag(sync=True)  # and what is at the chosen pixel, read when it changes
    interactive = traitlets.Bool(True).tag(sync=True)  # False for a picture that takes no focus and no clicks


class ModelPanel(widgets.VBox):
    """One model's picture, readout, and four levels; calls `chosen(y, x)` when a pixel is chosen in the picture."""

    def __init__(self, chosen: Callable[[int, int], None]) -> None:
        self.title, self.text, self.note = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.canvas = ClickCanvas()
        self.canvas.observe(lambda change: chosen(*change["new"]), "pixel")
        self.levels = [ClickCanvas(interactive=False) for _ in range(4)]
        self.captions = [widgets.HTML() for _ in range(4)]
        columns = list(map(widgets.VBox, zip(self.levels, self.captions, strict=True)))
        main = widgets.Box([self.canvas, self.text]).add_class("s2fpn-main")
        super().__init__([self.title, main, self.note, widgets.Box(columns).add_class("s2fpn-levels")])
        self.add_class("s2fpn-panel")

    def show(self, state: State, inspection: Inspection) -> None:
        """Draws a state; the inspection is only indexed."""
        found, name = readout(state, inspection), inspection.model.name
        with self.canvas.hold_sync():
            self.canvas.picture = jpeg(render(state, inspection))
            self.canvas.size, self.canvas.pixel = inspection.size, (state.y, state.x)
            self.canvas.label = f"{inspection.picture.name}, {state.view} of {name}: click, or move with the arrow keys"
            self.canvas.description = found.sentence()
        self.title.value = f"<b>{escape(name)}</b>"
        self.text.value = _readout_html(found, inspection.protocol)
        self.note.value = _muted(revision_note(inspection))
        for index, (level, canvas) in enumerate(zip(found.levels, self.levels, strict=True)):
            with canvas.hold_sync():
                canvas.picture, canvas.label = jpeg(render_level(state, inspection, index)), level.sentence()
            lines = [f"<b>{level.name}</b> {_muted(level.shape())}", *map(escape, level.facts())]
            self.captions[index].value = f'<div class="s2fpn-level">{"<br>".join(lines)}</div>'


class ImageControls(widgets.VBox):
    """The choice of the image, by index, path, or upload, and of the second model."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset, last = dataset, len(dataset) - 1
        self.index = widgets.BoundedIntText(max=last, description="image", tooltip="Index of the image in the dataset")
        self.show_index = widgets.Button(description="Show", icon="picture-o", tooltip="Show the image of this index")
        self.what = widgets.HTML()
        self.path = widgets.Text(description="picture", placeholder="path of an image")
        self.label_path = widgets.Text(description="label", placeholder="path of its label PNG, if any")
        self.open_path = widgets.Button(description="Open", icon="folder-open", tooltip="Open the image at this path")
        self.upload = widgets.FileUpload(accept="image/*", description="Upload an image")
        self.upload_label = widgets.FileUpload(accept=".png", description="Upload its label")
        self.second = widgets.Text(description="second model", placeholder="released name, run folder, or file")
        self.compare = widgets.Button(description="Compare", icon="columns", tooltip="Show it next to the first model")
        self.stop = widgets.Button(description="One model", icon="square-o", tooltip="Close the second model")
        files = [_row(self.path, self.label_path, self.open_path), _row(self.upload, self.upload_label)]
        more = widgets.VBox([*files, _row(self.second, self.compare, self.stop)])
        folded = widgets.Accordion([more], titles=("Your own image, a second model",), selected_index=None)
        super().__init__([_row(self.index, self.show_index, self.what), folded])

    def show(self, inspections: Sequence[Inspection]) -> None:
        """Shows which image is open, and whether a second model is."""
        data, name = self.dataset, inspections[0].picture.name
        if name in data.names:
            self.index.value = data.names.index(name)
        self.what.value = _muted(f"of 0 to {len(data) - 1}, {data.name} {data.split}: {name}")
        self.stop.disabled = len(inspections) < 2


class ViewControls(widgets.VBox):
    """Pixel, view, opacity, and pins, and the buttons that write files; the button of a pin calls `chosen(y, x)`."""

    def __init__(self, chosen: Callable[[int, int], None]) -> None:
        self.chosen = chosen
        self.y = widgets.BoundedIntText(description="row y")
        self.x = widgets.BoundedIntText(description="column x")
        self.view = widgets.Dropdown(options=VIEWS, description="view")
        self.opacity = widgets.FloatSlider(max=1, step=0.05, description="opacity")
        self.pin = widgets.Button(description="Pin", icon="thumb-tack", tooltip="Keep this pixel")
        self.save = widgets.Button(description="Save", icon="save", tooltip="Write picture (PNG) and numbers (JSON)")
        self.export = widgets.Button(description="Export HTML", icon="file-code-o", tooltip="Write an HTML page")
        self.pins = _row()
        buttons = _row(self.pin, self.save, self.export, self.pins)
        super().__init__([_row(self.y, self.x, self.view, self.opacity), buttons])

    def show(self, state: State, inspection: Inspection) -> None:
        """Sets every control to the state."""
        self.view.options = inspection.views
        self.view.value, self.opacity.value = state.view, state.opacity
        self.y.max, self.x.max = (side - 1 for side in inspection.size)
        self.y.value, self.x.value = state.y, state.x
        self.pin.description = "Unpin" if (state.y, state.x) in state.pins else "Pin"
        texts = [f"{pin.y}, {pin.x}: {pin.prediction}" for pin in pin_readouts(state, inspection)]
        if texts != [button.description for button in self.pins.children]:  # new buttons would lose the focus
            self.pins.children = [widgets.Button(description=text, tooltip=f"Go to pin {text}") for text in texts]
            for button, pin in zip(self.pins.children, state.pins, strict=True):
                button.on_click(lambda _, pin=pin: self.chosen(*pin))


class ClassLegend(widgets.Box):
    """A check box and an `only` button per class, and `all` and `none`; calls `changed(hidden ids)`."""

    def __init__(self, protocol: Protocol, changed: Callable[[frozenset[int]], None]) -> None:
        every = frozenset(range(protocol.num_classes))

        def button(text: str, tooltip: str, hidden: frozenset[int]) -> widgets.Button:
            made = widgets.Button(description=text, tooltip=tooltip)
            made.on_click(lambda _: changed(hidden))
            return made

        self.boxes = [widgets.Checkbox(True, description=name, indent=False) for name in protocol.classes]
        self.only = [button("only", f"Show only {name}", every - {i}) for i, name in enumerate(protocol.classes)]
        self.all, self.none = button("all", "Show every class", frozenset()), button("none", "Hide every class", every)
        entries = []
        for box, only, color in zip(self.boxes, self.only, protocol.palette, strict=True):
            box.observe(lambda _: changed(frozenset(i for i in every if not self.boxes[i].value)), "value")
            swatch = widgets.HTML(f'<span class="s2fpn-swatch" style="background: rgb{color}"></span>')
            entries.append(widgets.HBox([swatch, box, only]).add_class("s2fpn-legend-entry"))
        super().__init__([*entries, self.all, self.none])
        self.add_class("s2fpn-row")

    def show(self, hidden: frozenset[int]) -> None:
        """Checks the boxes of the classes that are not hidden."""
        for class_id, box in enumerate(self.boxes):
            box.value = class_id not in hidden


def _row(*children: widgets.Widget) -> widgets.Box:
    return widgets.Box(children).add_class("s2fpn-row")


def _muted(text: str) -> str:
    return f'<span class="s2fpn-muted">{escape(text)}</span>'


def _readout_html(found: Readout, protocol: Protocol) -> str:
    """The chosen pixel: class, place, true class, and the most probable classes as bars."""
    truth = escape(found.truth_words())
    if found.truth in protocol.classes:
        truth += " (correct)" if found.truth == found.prediction else " (the prediction is wrong)"
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td><span class="s2fpn-bar" style="width: {max(1, round(110 * p))}px; '
        f'background: rgb{protocol.palette[protocol.classes.index(name)]}"></span>{p:.1%}</td></tr>'
        for name, p in ((found.prediction, found.confidence), *found.others)
    )
    return (
        f'<div class="s2fpn-readout"><h4>{escape(found.prediction)}</h4>row {found.y}, column {found.x}<br>'
        f"true class: {truth}<table>{rows}</table></div>"
    )
