"""The attention inspector as a widget for JupyterLab, VS Code, and Voila.

A click, a key, or a control makes a new `State`; drawing it runs no network.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from s2fpn_lib.data import Protocol, SegmentationDataset
from s2fpn_lib.inspector.controls import ClassLegend, ImageControls, ModelPanel, ViewControls
from s2fpn_lib.inspector.export import export_html, file_stem, save_inspection
from s2fpn_lib.inspector.state import Inspection, NamedModel, Picture, Size, State, Upload, inspect, label_ids

STYLE = (Path(__file__).parent / "widget.css").read_text()
OTHER_PIXEL = "Choose another pixel, or open the image again."
DISK = "Free disk space, or give the notebook another folder for its results."
DAMAGED = "Choose an index inside the dataset; `01_data` lists damaged files."
LABEL = "Upload a PNG of train ids or of the protocol's colors, of the image's own size."
CHECKPOINT = "Give a released name, a run folder, or a .safetensors file."


class Inspector(widgets.VBox):
    """One image, first `picture`, seen by one model or by two models side by side.

    models: one or two; the second one can also be chosen in the widget. dataset: its images can be opened by index.
    protocol: classes and colors that the models were trained on. size: the size at which the network sees the images
    that are opened in the widget. results: folder for saved files.

    `state` and `inspections` (one per model) are what is shown. The methods raise exceptions; the controls show them.
    """

    def __init__(
        self,
        models: Sequence[NamedModel],
        dataset: SegmentationDataset,
        picture: Picture,
        protocol: Protocol,
        *,
        size: Size = "protocol",
        results: str | Path = "results",
    ) -> None:
        self.dataset, self.protocol, self.network_size, self.results = dataset, protocol, size, Path(results)
        self.updating = False
        self.message, self.status, self.stage = widgets.HTML(), widgets.HTML(), widgets.Box().add_class("s2fpn-stage")
        choose = self._handler(self._choose_pixel, "Choosing a pixel", OTHER_PIXEL)
        hide = self._handler(self._hide, "Choosing classes", "Press “all” to show every class again.")
        self.panels = [ModelPanel(choose) for _ in range(2)]
        self.image_controls, self.view_controls = ImageControls(dataset), ViewControls(choose)
        self.legend = ClassLegend(protocol, hide)
        self._connect()
        parts = [self.message, self.image_controls, self.view_controls, self.legend, self.status, self.stage]
        super().__init__([widgets.HTML(f"<style>{STYLE}</style>"), *parts])
        self.add_class("s2fpn-inspector")
        self.inspections = [self._inspect(model, picture) for model in models]
        self.apply(State(*(side // 2 for side in self.inspections[0].size)))

    def open_picture(self, picture: Picture) -> None:
        """Runs every model on the picture and shows it; the chosen pixel stays if it lies inside."""
        self.inspections = [self._inspect(each.model, picture) for each in self.inspections]
        first, state = self.inspections[0], self.state
        view = state.view if state.view in first.views else "prediction"
        self.apply(replace(state.at(state.y, state.x, first.size), view=view, pins=()))

    def compare(self, second: NamedModel | None) -> None:
        """Shows another model next to the first one; None closes the second model."""
        added = [self._inspect(second, self.inspections[0].picture)] if second else []
        self.inspections = self.inspections[:1] + added
        self.apply(self.state)

    def apply(self, state: State) -> None:
        """Shows another state of the same image."""
        self.state = state
        self._say("")
        self._clear_error()
        self._update_controls()
        for panel, inspection in zip(self.panels, self.inspections, strict=False):
            panel.show(state, inspection)
        self.stage.children = self.panels[: len(self.inspections)]

    def _inspect(self, model: NamedModel, picture: Picture) -> Inspection:
        self._say(f"Running {model.name} on {picture.name} …")
        return inspect(model, picture, self.protocol)

    def _update_controls(self) -> None:
        self.updating = True
        try:
            self.view_controls.show(self.state, self.inspections[0])
            self.image_controls.show(self.inspections)
            self.legend.show(self.state.hidden)
        finally:
            self.updating = False

    def _say(self, text: str) -> None:
        self.status.value = _message("status", "", escape(text)) if text else ""

    def _clear_error(self) -> None:
        """Removes the error message; the warnings of the models stay."""
        warnings = [f"{each.model.name}: {each.warning}." for each in self.inspections if each.warning]
        self.message.value = "".join(_message("alert", "s2fpn-warning", escape(text)) for text in warnings)

    def _handler(self, method: Callable[..., None], action: str, remedy: str) -> Callable[..., None]:
        """An event handler that shows exceptions above the picture and ignores the inspector's own changes."""

        def handle(*args: Any) -> None:
            if self.updating:
                return
            try:
                self._clear_error()
                method(*args)
            except Exception as error:
                text = f"<b>{action} failed.</b> {escape(str(error))}<br><b>What to do:</b> {remedy}"
                details = escape("".join(traceback.format_exception(error)))
                text += f"<details><summary>Details</summary><pre>{details}</pre></details>"
                self.message.value = _message("alert", "s2fpn-error", text)
                self._say("")
                self._update_controls()

        return handle

    def _connect(self) -> None:
        view, image = self.view_controls, self.image_controls
        for controls, method, action, remedy in (
            ((view.y, view.x, view.view, view.opacity), self._change_view, "Changing the view", OTHER_PIXEL),
            ((view.pin,), lambda _: self.apply(self.state.pinned()), "Pinning the pixel", OTHER_PIXEL),
            ((view.save,), self._save, "Saving", DISK),
            ((view.export,), self._export, "Exporting", DISK),
            ((image.index, image.show_index), self._open_index, "Opening the image", DAMAGED),
            ((image.open_path,), self._open_path, "Opening the image", "Check the path of the image (PNG, JPEG, ...)."),
            ((image.upload,), self._open_upload, "Opening the upload", "Upload an image (PNG, JPEG, ...)."),
            ((image.upload_label,), self._open_label, "Opening the label", LABEL),
            ((image.compare,), self._open_second, "Opening the second model", CHECKPOINT),
            ((image.stop,), lambda _: self.compare(None), "Closing the second model", "Run the notebook's cell again."),
        ):
            handler = self._handler(method, action, remedy)
            for control in controls:
                if isinstance(control, widgets.Button):
                    control.on_click(handler)
                else:
                    control.observe(handler, "value")

    def _choose_pixel(self, y: int, x: int) -> None:
        self.apply(self.state.at(y, x, self.inspections[0].size))

    def _hide(self, hidden: frozenset[int]) -> None:
        self.apply(replace(self.state, hidden=hidden))

    def _change_view(self, _: Any) -> None:
        names = ("y", "x", "view", "opacity")
        self.apply(replace(self.state, **{name: getattr(self.view_controls, name).value for name in names}))

    def _save(self, _: Any) -> None:
        picture, record = save_inspection(self.results, self.state, self.inspections)
        self._say(f"Saved {picture} and {record.name}")

    def _export(self, _: Any) -> None:
        path = self.results / f"{file_stem(self.state, self.inspections)}.html"
        export_html(path, self.state, self.inspections)
        self._say(f"Exported {path}, a page that works without kernel and network")

    def _open_index(self, _: Any) -> None:
        index = self.image_controls.index.value
        self.open_picture(Picture.of_dataset(self.dataset, index, self.network_size, self.protocol))

    def _open_path(self, _: Any) -> None:
        path, label = (field.value.strip() for field in (self.image_controls.path, self.image_controls.label_path))
        if not path:
            raise ValueError("no path is given")
        picture = Picture.of_file(path, self.network_size, self.protocol)
        self.open_picture(picture.labeled(label_ids(label, self.protocol)) if label else picture)

    def _open_upload(self, change: dict[str, Any]) -> None:
        for upload in change["new"]:
            self.open_picture(Picture.of_file(Upload(upload), self.network_size, self.protocol))

    def _open_label(self, change: dict[str, Any]) -> None:
        for upload in change["new"]:
            picture = self.inspections[0].picture.labeled(label_ids(Upload(upload), self.protocol))
            self.inspections = [replace(each, picture=picture) for each in self.inspections]
            self.apply(self.state)

    def _open_second(self, _: Any) -> None:
        device = next(self.inspections[0].model.network.parameters()).device
        self.compare(NamedModel.load(self.image_controls.second.value.strip(), device=device))


def _message(role: str, style: str, html: str) -> str:
    return f'<div role="{role}" class="s2fpn-message {style}">{html}</div>'
