"""The attention inspector as a widget: a thin skin over `inspector`, for JupyterLab, VS Code and Voila.

    inspector = Inspector(opened_model("s2fpn_lite-camvid"), protocol, dataset=open_dataset("auto", split="val"))
    inspector.open_index(0)
    inspector

A click, a key or a control makes another `State`; every state is drawn by indexing what one forward pass an image and
model has left. Whatever goes wrong in a callback is shown above the picture, with what to do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from s2fpn_lib.data import Protocol, SegmentationDataset
from s2fpn_lib.inspector.controls import ImageControls, ViewControls
from s2fpn_lib.inspector.html import export_html
from s2fpn_lib.inspector.legend import ClassLegend
from s2fpn_lib.inspector.messages import error_html, status_html, warnings_html
from s2fpn_lib.inspector.numbers import readout
from s2fpn_lib.inspector.panel import ModelPanel
from s2fpn_lib.inspector.save import file_stem, save_inspection
from s2fpn_lib.inspector.sources import (
    NamedModel,
    Picture,
    dataset_picture,
    file_picture,
    opened_model,
    uploaded_label,
    uploaded_picture,
)
from s2fpn_lib.inspector.state import Inspection, State, inspect

STYLE = (Path(__file__).parent / "widget.css").read_text()


def shown(doing: str, remedy: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A callback whose exception appears in the widget: what failed, why, and what to do.

    While the widget itself sets its controls it is not called: these changes are no user's.
    """

    def decorate(callback: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(callback)
        def wrapper(self: Inspector, *args: Any) -> None:
            if self.showing:
                return
            try:
                self.clear_error()
                callback(self, *args)
            except Exception as error:
                self.show_error(doing, error, remedy)

        return wrapper

    return decorate


class Inspector(widgets.VBox):
    """One image seen by one model, or by two side by side.

    Args:
        model, second: what looks; `second` may also be chosen in the widget.
        protocol: classes and colours that the models were trained on.
        dataset: whose images can be opened by index; None: pictures of one's own only.
        size: what the network sees, as `network_size` takes it: "protocol", "own" or (height, width).
        results: folder of what is saved.

    Attributes: state, picture, inspections (one a model; empty before the first picture), error (what is shown).

    `open_index`, `open_file` and `compare` raise like any function; the same from a control shows its exception.
    """

    def __init__(
        self,
        model: NamedModel,
        protocol: Protocol,
        *,
        second: NamedModel | None = None,
        dataset: SegmentationDataset | None = None,
        size: str | Sequence[int] = "protocol",
        results: str | Path = "results",
    ) -> None:
        self.protocol, self.dataset, self.network_size, self.results = protocol, dataset, size, Path(results)
        self.state, self.error, self.showing = State(), "", False
        self.picture: Picture | None = None
        self.models: list[NamedModel] = []
        self.inspections: list[Inspection] = []
        self.message, self.status = widgets.HTML(), widgets.HTML()
        self.image_controls = ImageControls(len(dataset) if dataset is not None else 0)
        self.view_controls = ViewControls()
        self.legend = ClassLegend(protocol, self._classes_changed)
        self.stage = widgets.Box(layout=widgets.Layout(flex_flow="row wrap", grid_gap="18px"))
        self._connect()
        parts = [self.message, self.image_controls, self.view_controls, self.legend, self.status, self.stage]
        super().__init__([widgets.HTML(f"<style>{STYLE}</style>"), *parts])
        self.add_class("s2fpn-inspector")
        self._use([model, second] if second else [model])
        self._draw()

    def open_index(self, index: int) -> None:
        """The dataset's image `index`, from 0."""
        if self.dataset is None:
            raise LookupError("this inspector has no dataset: open a picture by its path")
        self._look_at(dataset_picture(self.dataset, index, self.network_size, self.protocol))

    def open_file(self, path: str | Path, label: str | Path | None = None) -> None:
        """A picture file, optionally with its label PNG."""
        self._look_at(file_picture(path, label, self.network_size, self.protocol))

    def compare(self, second: NamedModel | None) -> None:
        """Another model beside the first; None: none."""
        models = [self.models[0], second] if second else self.models[:1]
        if self.picture is None:
            self._use(models)
        else:
            self._look_at(self.picture, models, keep=1)

    def apply(self, state: State) -> None:
        """Shows another state of the same image."""
        if state != self.state:
            self.state = state
            self._draw()

    def show_error(self, doing: str, error: BaseException, remedy: str) -> None:
        """Says above the picture what failed, why and what to do; controls go back to what is shown."""
        self.error = f"{doing} failed. {type(error).__name__}: {error}"
        self.message.value = error_html(doing, error, remedy)
        self._say("")
        self._show_controls()

    def clear_error(self) -> None:
        """Takes the message away, but for the warning of an untrained model."""
        self.error = ""
        pairs = zip(self.models, self.inspections, strict=False)  # no inspections before the first picture
        text = warnings_html(f"{each.name}: {seen.warning}." for each, seen in pairs if seen.warning)
        if self.message.value != text:
            self.message.value = text

    @property
    def _names(self) -> list[str]:
        return [each.name for each in self.models]

    def _use(self, models: list[NamedModel]) -> None:
        self._check(models)
        self.models = models
        self.panels = [ModelPanel(each.name, self.protocol, self._pixel_chosen) for each in models]

    def _check(self, models: list[NamedModel]) -> None:
        for each in models:
            if each.model.num_classes != self.protocol.num_classes:
                raise ValueError(
                    f"{each.name} knows {each.model.num_classes} classes, {self.protocol.name} has "
                    f"{self.protocol.num_classes}: give a model that was trained on it"
                )

    def _look_at(self, picture: Picture, models: list[NamedModel] | None = None, *, keep: int = 0) -> None:
        """One forward pass a model (None: those there are); the first `keep` have seen this picture already."""
        models = models or self.models
        self._check(models)
        inspections = self.inspections[:keep]
        for each in models[keep:]:
            self._say(f"Looking at {picture.name} with {each.name} …")
            options = {"label": picture.label, "name": picture.name, "provenance": each.provenance}
            inspections.append(inspect(each.model, picture.image, self.protocol, **options))
        if models is not self.models:
            self._use(models)
        self._adopt(picture, inspections)

    def _adopt(self, picture: Picture, inspections: list[Inspection]) -> None:
        """Takes a picture and its inspections over; the chosen pixel stays where it can."""
        size = inspections[0].size
        if self.picture is None:
            self.state = self.state.at(size[0] // 2, size[1] // 2, size)
        elif picture is not self.picture:
            self.state = replace(self.state, pins=())
        if picture.label is None and self.state.view in ("true classes", "errors"):
            self.state = replace(self.state, view="prediction")
        self.picture, self.inspections = picture, inspections
        self.state = self.state.at(self.state.y, self.state.x, size)
        self.clear_error()
        self._say("")
        self._draw()

    def _draw(self) -> None:
        self._show_controls()
        if not self.inspections:
            self._say("No picture yet: choose one of the dataset by its index, or open one of your own.")
            return
        with self._showing():
            for panel, inspection in zip(self.panels, self.inspections, strict=True):
                panel.show(self.state, inspection)
        if self.stage.children != tuple(self.panels):
            self.stage.children = tuple(self.panels)

    def _show_controls(self) -> None:
        first = self.inspections[0] if self.inspections else None
        pins = [(pin, readout(self._at(*pin), first).prediction) for pin in self.state.pins]
        with self._showing():
            self.view_controls.show(self.state, first, pins, self._pixel_chosen)
            self.image_controls.show(self.picture, self.dataset, len(self.models))
            self.legend.show(self.state.hidden)

    @contextmanager
    def _showing(self) -> Iterator[None]:
        before, self.showing = self.showing, True
        try:
            yield
        finally:
            self.showing = before

    def _say(self, text: str) -> None:
        self.status.value = status_html(text)

    def _at(self, y: int, x: int) -> State:
        return self.state.at(y, x, self.inspections[0].size)

    def _connect(self) -> None:
        view, image = self.view_controls, self.image_controls
        for name in ("y", "x", "view", "opacity"):
            getattr(view, name).observe(self._view_changed, "value")
        view.pin.on_click(self._pin)
        view.save.on_click(self._save)
        view.export.on_click(self._export)
        image.index.observe(self._show_index, "value")
        image.show_index.on_click(self._show_index)
        image.open_path.on_click(self._open_path)
        image.upload.observe(self._uploaded, "value")
        image.upload_label.observe(self._uploaded_label, "value")
        image.compare.on_click(self._open_second)
        image.stop.on_click(self._close_second)

    @shown("Choosing a pixel", "Choose another pixel, or open the picture again.")
    def _pixel_chosen(self, y: int, x: int) -> None:
        if self.inspections:
            self.apply(self._at(y, x))

    @shown("Changing the view", "Choose another view, or open the picture again.")
    def _view_changed(self, change: dict[str, Any]) -> None:
        if self.inspections:
            y, x, view, opacity = self.view_controls.values()
            self.apply(replace(self._at(y, x), view=view, opacity=opacity))

    @shown("Choosing classes", "Press “all” to show every class again.")
    def _classes_changed(self, hidden: frozenset[int]) -> None:
        self.apply(replace(self.state, hidden=hidden))

    @shown("Pinning the pixel", "Open a picture first.")
    def _pin(self, _: Any) -> None:
        self._need_picture()
        self.apply(self.state.pinned())

    @shown("Saving", "Make room on the disk, or give the notebook another folder for its results.")
    def _save(self, _: Any) -> None:
        self._need_picture()
        picture, record = save_inspection(self.results, self.state, self.inspections, self._names)
        self._say(f"Saved {picture} and {record.name}")

    @shown("Exporting", "Make room on the disk, or give the notebook another folder for its results.")
    def _export(self, _: Any) -> None:
        self._need_picture()
        path = self.results / f"{file_stem(self.state, self.inspections, self._names)}.html"
        export_html(path, self.state, self.inspections, self._names)
        self._say(f"Exported {path}: one page that works without a kernel and without a network")

    @shown("Opening the image", "Choose an index inside the dataset; `01_data` names broken files.")
    def _show_index(self, _: Any) -> None:
        self.open_index(self.image_controls.index.value)

    @shown("Opening the picture", "Check the path; a picture is what an image viewer opens (PNG, JPEG, ...).")
    def _open_path(self, _: Any) -> None:
        path = self.image_controls.path.value.strip()
        if not path:
            raise ValueError("no path is given")
        self.open_file(path, self.image_controls.label_path.value.strip() or None)

    @shown("Opening the upload", "Upload a picture that an image viewer opens (PNG, JPEG, ...).")
    def _uploaded(self, change: dict[str, Any]) -> None:
        for upload in change["new"]:
            self._look_at(uploaded_picture(upload, self.network_size, self.protocol))

    @shown("Opening the label", "Upload a PNG of train ids or of the protocol's colours, as large as the picture was.")
    def _uploaded_label(self, change: dict[str, Any]) -> None:
        for upload in change["new"]:
            self._need_picture()
            picture = self.picture.labeled(uploaded_label(upload, self.protocol))
            self._adopt(picture, [replace(each, label=picture.label) for each in self.inspections])

    @shown("Opening the second model", "Give a released name, a run folder or a .safetensors file.")
    def _open_second(self, _: Any) -> None:
        device = next(self.models[0].model.parameters()).device
        self.compare(opened_model(self.image_controls.second.value.strip(), device=device))

    @shown("Closing the second model", "Run the notebook's cell again.")
    def _close_second(self, _: Any) -> None:
        self.compare(None)

    def _need_picture(self) -> None:
        if not self.inspections:
            raise LookupError("no picture is open: choose one by its index, or open one of your own")
