"""The controls of the inspector: which image and model, and how it is looked at. They know nothing of either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import ipywidgets as widgets

from s2fpn_lib.data import SegmentationDataset
from s2fpn_lib.inspector.sources import Picture
from s2fpn_lib.inspector.state import VIEWS, Inspection, State

PLAIN = {"description_width": "initial"}  # as wide as its words
ROW = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "6px"}


class ImageControls(widgets.VBox):
    """The image by index, path or upload, and the second model."""

    def __init__(self, images: int) -> None:
        self.index = widgets.BoundedIntText(
            0,
            min=0,
            max=max(images - 1, 0),
            description="image",
            style=PLAIN,
            disabled=not images,
            layout=_wide("130px"),
        )
        self.index.tooltip = "Index of the dataset's image"
        self.show_index = _button("Show", "picture-o", "Show the dataset's image of this index")
        self.what = widgets.HTML()
        self.path = widgets.Text(
            placeholder="path of a picture", description="picture", style=PLAIN, layout=_wide("320px")
        )
        self.label_path = widgets.Text(
            placeholder="path of its label PNG, if any", description="label", style=PLAIN, layout=_wide("320px")
        )
        self.open_path = _button("Open", "folder-open", "Open the picture at this path")
        self.upload = widgets.FileUpload(accept="image/*", description="Upload a picture", layout=_wide("auto"))
        self.upload_label = widgets.FileUpload(accept=".png", description="Upload its label", layout=_wide("auto"))
        self.second = widgets.Text(
            placeholder="released name, run folder or file",
            description="second model",
            style=PLAIN,
            layout=_wide("320px"),
        )
        self.compare = _button("Compare", "columns", "Show this model beside the first")
        self.stop = _button("One model", "square-o", "Close the second model")
        own = widgets.VBox(
            [
                widgets.Box([self.path, self.label_path, self.open_path], layout=widgets.Layout(**ROW)),
                widgets.Box([self.upload, self.upload_label], layout=widgets.Layout(**ROW)),
                widgets.Box([self.second, self.compare, self.stop], layout=widgets.Layout(**ROW)),
            ]
        )
        self.more = widgets.Accordion([own], titles=("Your own picture, a second model",), selected_index=None)
        super().__init__(
            [widgets.Box([self.index, self.show_index, self.what], layout=widgets.Layout(**ROW)), self.more]
        )

    def show(self, picture: Picture | None, dataset: SegmentationDataset | None, models: int) -> None:
        """What is open, and out of what."""
        self.stop.disabled = models < 2
        self.show_index.disabled = dataset is None
        where = f"of 0 to {len(dataset) - 1}, {dataset.name} {dataset.split}" if dataset is not None else "no dataset"
        open_now = f": {picture.name}" if picture else ""
        self.what.value = f'<span class="s2fpn-muted">{escape(where + open_now)}</span>'
        if picture and dataset is not None and picture.name in dataset.names:
            self.index.value = dataset.names.index(picture.name)


class ViewControls(widgets.VBox):
    """Pixel, view, opacity, pins, and what is saved."""

    def __init__(self) -> None:
        start = State()
        self.y = widgets.BoundedIntText(0, min=0, max=0, description="row y", style=PLAIN, layout=_wide("130px"))
        self.x = widgets.BoundedIntText(0, min=0, max=0, description="column x", style=PLAIN, layout=_wide("130px"))
        self.view = widgets.Dropdown(
            options=VIEWS, value=start.view, description="view", style=PLAIN, layout=_wide("170px")
        )
        self.opacity = widgets.FloatSlider(
            start.opacity,
            min=0,
            max=1,
            step=0.05,
            description="opacity",
            style=PLAIN,
            readout_format=".2f",
            layout=_wide("250px"),
        )
        self.pin = _button("Pin", "thumb-tack", "Keep this pixel, to come back to it")
        self.save = _button("Save", "save", "Picture (PNG) and numbers with provenance (JSON), into the results")
        self.export = _button(
            "Export HTML", "file-code-o", "One page that works without a kernel and without a network"
        )
        self.pins = widgets.Box(layout=widgets.Layout(**ROW))
        first = widgets.Box([self.y, self.x, self.view, self.opacity], layout=widgets.Layout(**ROW))
        second = widgets.Box([self.pin, self.save, self.export, self.pins], layout=widgets.Layout(**ROW))
        super().__init__([first, second])

    def values(self) -> tuple[int, int, str, float]:
        """y, x, view and opacity as they are set."""
        return self.y.value, self.x.value, self.view.value, self.opacity.value

    def show(
        self,
        state: State,
        inspection: Inspection | None,
        pins: Sequence[tuple[tuple[int, int], str]],
        go: Callable[[int, int], None],
    ) -> None:
        """pins: ((y, x), class) of each; go(y, x) is called when its button is pressed."""
        known = inspection is not None and inspection.label is not None
        views = VIEWS if known else tuple(view for view in VIEWS if view not in ("true classes", "errors"))
        if self.view.options != views:
            self.view.options = views
        self.view.value, self.opacity.value = state.view, state.opacity
        height, width = inspection.size if inspection else (1, 1)
        self.y.max, self.x.max = height - 1, width - 1
        self.y.value, self.x.value = state.y, state.x
        self.pin.description = "Unpin" if (state.y, state.x) in state.pins else "Pin"
        for each in (self.pin, self.save, self.export, self.y, self.x, self.view, self.opacity):
            each.disabled = inspection is None
        self._show_pins(pins, go)

    def _show_pins(self, pins: Sequence[tuple[tuple[int, int], str]], go: Callable[[int, int], None]) -> None:
        texts = [f"{y}, {x}: {name}" for (y, x), name in pins]
        if texts == [button.description for button in self.pins.children]:
            return
        buttons = []
        for text, ((y, x), _) in zip(texts, pins, strict=True):
            button = widgets.Button(description=text, tooltip=f"Go to row {y}, column {x}", layout=_wide("auto"))
            button.on_click(lambda _, y=y, x=x: go(y, x))
            buttons.append(button)
        self.pins.children = buttons


def _button(text: str, icon: str, tooltip: str) -> widgets.Button:
    return widgets.Button(description=text, icon=icon, tooltip=tooltip, layout=_wide("auto"))


def _wide(width: str) -> widgets.Layout:
    return widgets.Layout(width=width)
