"""The attention inspector as a widget for JupyterLab, VS Code, and Voila.

    inspector = Inspector(opened_model("s2fpn_lite-camvid"), protocol, dataset=open_dataset("auto", split="val"))
    inspector.open_index(0)
    inspector

A click, a key, or a control makes a new `State`. Drawing a state only indexes the result of the one forward pass per
image and model.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from s2fpn_lib.data import Protocol, SegmentationDataset
from s2fpn_lib.inspector.controls import ClassLegend, ImageControls, ModelPanel, ViewControls
from s2fpn_lib.inspector.export import export_html, file_stem, save_inspection
from s2fpn_lib.inspector.sources import (
    NamedModel,
    Picture,
    Upload,
    dataset_picture,
    file_picture,
    label_ids,
    opened_model,
)
from s2fpn_lib.inspector.state import Inspection, State, inspect

STYLE = (Path(__file__).parent / "widget.css").read_text()


def handler(action: str, remedy: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turns a method into an event handler, whose exception appears above the picture with what to do.

    Changes that the inspector itself makes to its controls are ignored.
    """

    def decorate(method: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(method)
        def handle(self: Inspector, *args: Any) -> None:
            if self.updating:
                return
            try:
                self.clear_error()
                method(self, *args)
            except Exception as error:
                self.show_error(action, error, remedy)

        return handle

    return decorate


class Inspector(widgets.VBox):
    """One image seen by one model, or by two models side by side.

    Args:
        model, second: the models; `second` can also be chosen in the widget.
        protocol: classes and colors that the models were trained on.
        dataset: its images can be opened by index; None: only image files.
        size: the size that the network sees: "protocol", "own", or (height, width), see `network_size`.
        results: folder for saved files.

    Attributes: state, picture, inspections (one per model; empty before the first image), error (the error shown).

    `open_index`, `open_file`, and `compare` raise exceptions; the controls show them.
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
        self.state, self.error, self.updating = State(), "", False
        self.picture: Picture | None = None
        self.inspections: list[Inspection] = []
        self.message, self.status = widgets.HTML(), widgets.HTML()
        self.image_controls, self.view_controls = ImageControls(dataset), ViewControls()
        self.legend = ClassLegend(protocol, self._hide_classes)
        self.models = [model, second] if second else [model]
        self.panels = [ModelPanel(self._choose_pixel) for _ in range(2)]
        self.stage = widgets.Box().add_class("s2fpn-stage")
        self._connect()
        parts = [self.message, self.image_controls, self.view_controls, self.legend, self.status, self.stage]
        super().__init__([widgets.HTML(f"<style>{STYLE}</style>"), *parts])
        self.add_class("s2fpn-inspector")
        self._draw()

    def open_index(self, index: int) -> None:
        """Opens image `index` of the dataset."""
        if self.dataset is None:
            raise LookupError("this inspector has no dataset: open an image by its path")
        self._open(dataset_picture(self.dataset, index, self.network_size, self.protocol))

    def open_file(self, source: str | Path | Upload, label: str | Path | None = None) -> None:
        """Opens an image file, optionally with its label PNG."""
        self._open(file_picture(source, label, self.network_size, self.protocol))

    def compare(self, second: NamedModel | None) -> None:
        """Shows another model next to the first one; None closes the second model."""
        inspections = self.inspections[:1]
        if second and self.picture:
            inspections.append(self._inspect(second, self.picture))
        self.models = [self.models[0], second] if second else self.models[:1]
        self.inspections = inspections
        self.clear_error()
        self._draw()

    def apply(self, state: State) -> None:
        """Shows another state of the same image."""
        if state != self.state:
            self.state = state
            self._draw()

    def show_error(self, action: str, error: BaseException, remedy: str) -> None:
        """Shows above the picture what failed, why, and what to do; controls return to what is shown."""
        self.error = f"{action} failed. {type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        self.message.value = (
            f'<div role="alert" class="s2fpn-message s2fpn-error"><b>{escape(action)} failed.</b> {escape(str(error))}'
            f"<br><b>What to do:</b> {escape(remedy)}"
            f"<details><summary>Details</summary><pre>{escape(trace)}</pre></details></div>"
        )
        self._say("")
        self._update_controls()

    def clear_error(self) -> None:
        """Removes the error message; the warnings of untrained models stay."""
        self.error = ""
        self.message.value = "".join(
            '<div role="alert" class="s2fpn-message s2fpn-warning">'
            f"{escape(each.model_name)}: {escape(each.warning)}.</div>"
            for each in self.inspections
            if each.warning
        )

    def _inspect(self, model: NamedModel, picture: Picture) -> Inspection:
        self._say(f"Running {model.name} on {picture.name} …")
        names = {"name": picture.name, "model_name": model.name, "provenance": model.provenance}
        return inspect(model.model, picture.image, self.protocol, label=picture.label, **names)

    def _open(self, picture: Picture) -> None:
        """Runs every model on the picture and shows it; the chosen pixel stays if it lies inside."""
        inspections = [self._inspect(each, picture) for each in self.models]
        size = inspections[0].size
        if self.picture is None:
            self.state = self.state.at(size[0] // 2, size[1] // 2, size)
        self.state = replace(self.state.at(self.state.y, self.state.x, size), pins=())
        if picture.label is None and self.state.view in ("true classes", "errors"):
            self.state = replace(self.state, view="prediction")
        self.picture, self.inspections = picture, inspections
        self.clear_error()
        self._draw()

    def _draw(self) -> None:
        self._say("" if self.inspections else "No image yet: choose one of the dataset by its index, or open a file.")
        self._update_controls()
        panels = self.panels[: len(self.inspections)]
        with self._updating():
            for panel, inspection in zip(panels, self.inspections, strict=True):
                panel.show(self.state, inspection)
        self.stage.children = tuple(panels)

    def _update_controls(self) -> None:
        with self._updating():
            self.view_controls.show(self.state, next(iter(self.inspections), None), self._choose_pixel)
            self.image_controls.show(self.picture, len(self.models))
            self.legend.show(self.state.hidden)

    @contextmanager
    def _updating(self) -> Iterator[None]:
        self.updating = True
        try:
            yield
        finally:
            self.updating = False

    def _say(self, text: str) -> None:
        self.status.value = f'<div role="status" class="s2fpn-message">{escape(text)}</div>' if text else ""

    def _connect(self) -> None:
        view, image = self.view_controls, self.image_controls
        for control in (view.y, view.x, view.view, view.opacity):
            control.observe(self._change_view, "value")
        view.pin.on_click(self._pin)
        view.save.on_click(self._save)
        view.export.on_click(self._export)
        image.index.observe(self._open_index, "value")
        image.show_index.on_click(self._open_index)
        image.open_path.on_click(self._open_path)
        image.upload.observe(self._open_upload, "value")
        image.upload_label.observe(self._open_label, "value")
        image.compare.on_click(self._open_second)
        image.stop.on_click(self._close_second)

    @handler("Choosing a pixel", "Choose another pixel, or open the image again.")
    def _choose_pixel(self, y: int, x: int) -> None:
        self.apply(self.state.at(y, x, self.inspections[0].size))

    @handler("Changing the view", "Choose another view, or open the image again.")
    def _change_view(self, _: Any) -> None:
        view = self.view_controls
        self.apply(
            replace(self.state, y=view.y.value, x=view.x.value, view=view.view.value, opacity=view.opacity.value)
        )

    @handler("Choosing classes", "Press “all” to show every class again.")
    def _hide_classes(self, hidden: frozenset[int]) -> None:
        self.apply(replace(self.state, hidden=hidden))

    @handler("Pinning the pixel", "Choose another pixel, or open the image again.")
    def _pin(self, _: Any) -> None:
        self.apply(self.state.pinned())

    @handler("Saving", "Free disk space, or give the notebook another folder for its results.")
    def _save(self, _: Any) -> None:
        picture, record = save_inspection(self.results, self.state, self.inspections)
        self._say(f"Saved {picture} and {record.name}")

    @handler("Exporting", "Free disk space, or give the notebook another folder for its results.")
    def _export(self, _: Any) -> None:
        path = self.results / f"{file_stem(self.state, self.inspections)}.html"
        export_html(path, self.state, self.inspections)
        self._say(f"Exported {path}, a page that works without kernel and network")

    @handler("Opening the image", "Choose an index inside the dataset; `01_data` lists damaged files.")
    def _open_index(self, _: Any) -> None:
        self.open_index(self.image_controls.index.value)

    @handler("Opening the image", "Check the path; the file must be an image (PNG, JPEG, ...).")
    def _open_path(self, _: Any) -> None:
        path, label = (field.value.strip() for field in (self.image_controls.path, self.image_controls.label_path))
        if not path:
            raise ValueError("no path is given")
        self.open_file(path, label or None)

    @handler("Opening the upload", "Upload an image (PNG, JPEG, ...).")
    def _open_upload(self, change: dict[str, Any]) -> None:
        for upload in change["new"]:
            self.open_file(Upload(upload))

    @handler("Opening the label", "Upload a PNG of train ids or of the protocol's colors, of the image's own size.")
    def _open_label(self, change: dict[str, Any]) -> None:
        for upload in change["new"]:
            self.picture = self.picture.labeled(label_ids(Upload(upload), self.protocol))
            self.inspections = [replace(each, label=self.picture.label) for each in self.inspections]
            self._draw()

    @handler("Opening the second model", "Give a released name, a run folder, or a .safetensors file.")
    def _open_second(self, _: Any) -> None:
        device = next(self.models[0].model.parameters()).device
        self.compare(opened_model(self.image_controls.second.value.strip(), device=device))

    @handler("Closing the second model", "Run the notebook's cell again.")
    def _close_second(self, _: Any) -> None:
        self.compare(None)
