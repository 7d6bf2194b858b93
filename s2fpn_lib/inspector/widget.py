"""The attention inspector as a widget for JupyterLab, VS Code, and Voila.

The script of the exported page draws it from data that the kernel sends once per image, so that clicks, keys, and views
need no kernel. The kernel opens images and models, scores the thumbnails, saves, and exports.
"""

import base64
import contextlib
import io
import math
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

import anywidget
import numpy as np
import traitlets
from IPython.display import HTML, display
from PIL import Image

from s2fpn_lib.checkpoint import CheckpointError, released_names
from s2fpn_lib.data import Protocol, SegmentationDataset, evenly_spaced
from s2fpn_lib.evaluate import count_seen, seen_caveat
from s2fpn_lib.inspector.export import HERE, export_html, file_stem, packed, save_inspection, script, style
from s2fpn_lib.inspector.numbers import readout
from s2fpn_lib.inspector.state import Inspection, NamedModel, Picture, Size, State, Upload, inspect, label_ids
from s2fpn_lib.inspector.views import inspection_figure
from s2fpn_lib.metrics import ConfusionMatrix, class_totals, iou_from_totals
from s2fpn_lib.model import S2FPN
from s2fpn_lib.report.tables import protocol_name
from s2fpn_lib.viz.images import as_array, html_image, jpeg, predicted
from s2fpn_lib.workbench.provenance import checkpoint_protocol

MOST_THUMBS = 24
THUMB_HEIGHT = 84  # pixels; shown at half this height
STILL = Template((HERE / "still.html").read_text())  # shown where neither the widget nor its own still figure is


class Inspector(anywidget.AnyWidget):
    """One image, first `picture`, seen by one model or by two models side by side.

    models: one or two; others can be chosen in the widget. dataset: its images can be opened by index. protocol: of the
    models. size: at which the network sees the images that are opened. results: folder for saved files, beside which
    the runs are that can be chosen. `state` and `inspections` (one per model) are what is shown.
    """

    _esm = script("widget.js")
    _css = style()
    shown = traitlets.Dict().tag(sync=True)  # `State.plain`, set by the browser, too
    fresh = traitlets.Bool(True).tag(sync=True)  # until a browser has scrolled to the widget

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
        self.strip = evenly_spaced(len(dataset), MOST_THUMBS)  # the images of the strip of thumbnails
        self.scores: dict[str, dict[int, float | None]] = {}  # by the checkpoint, of the images by index
        self.choices = model_choices(self.results.parent, protocol)
        self.inspections: list[Inspection] = [inspect(model, picture, protocol) for model in models]
        super().__init__(shown=State(*(side // 2 for side in self.inspections[0].size)).plain())
        self.on_msg(self._answer)

    @property
    def state(self) -> State:
        """What is shown of the image, as the browser has last reported it."""
        return State.of_plain(self.shown)

    def apply(self, state: State) -> None:
        """Shows another state of the same image."""
        first = self.inspections[0]
        self.shown = state.at(state.y, state.x, first.size, first.stride).plain()

    def open_picture(self, picture: Picture) -> None:
        """Runs every model on the picture and shows it; the chosen pixel stays if it lies inside."""
        self._show([inspect(each.model, picture, self.protocol) for each in self.inspections], pins=())

    def choose(self, which: int, model: NamedModel | None) -> None:
        """Shows another model: 0 is the first, 1 the second; None closes the second."""
        shown = [inspect(model, self.inspections[0].picture, self.protocol)] if model else []
        self._show([*self.inspections[:which], *shown, *self.inspections[which + 1 :]])

    def _show(self, inspections: list[Inspection], **changes: Any) -> None:
        self.inspections = inspections
        self.apply(replace(self.state, **changes).fitting(inspections))
        self._do_show()

    def _do_show(self) -> None:
        first, data, (of, scores) = self.inspections[0], self.dataset, self._scores()
        chosen = [each.model.path or each.model.name for each in self.inspections]
        seen = seen_caveat(count_seen(first.model.network, data, self.strip), len(self.strip))
        images = f"images of {protocol_name(data.name)} {data.split}"
        about = f"mIoU of {first.model.name} on {images}, worst first{seen and f'. {seen}'}."
        content = {"kind": "data", "choices": self.choices, "chosen": [chosen[0], *(chosen[1:] or [""])]}
        content |= {"name": first.picture.name, "index": self._index(), "last": len(data) - 1}
        content |= {"about": about, "of": of, "scores": scores}
        self.send(content, [packed(self.state, self.inspections)])

    def _index(self) -> int | None:
        """Index of the open image in the dataset, None for another image."""
        dataset, index = self.inspections[0].picture.sample or (None, None)
        return index if dataset is self.dataset else None

    def _scores(self) -> tuple[str, dict[int, float | None]]:
        model = self.inspections[0].model
        key = model.provenance.get("checkpoint_sha", model.name)  # two networks may have one name
        return key, self.scores.setdefault(key, {})

    def _answer(self, _: Any, request: dict[str, Any], buffers: list[memoryview]) -> None:
        """Does what the browser asks for; exceptions become a message in the widget."""
        name = request.pop("do")
        try:
            getattr(self, f"_do_{name}")(**request, **({"content": bytes(buffers[0])} if buffers else {}))
        except Exception as error:
            details = "".join(traceback.format_exception(error))
            self.send({"kind": "error", "request": name, "error": str(error), "details": details})

    def _do_thumbs(self) -> None:
        shown = sorted({*self.strip, *filter(None, [self._index()])})
        images = [{"index": index, "name": self.dataset.names[index]} for index in shown]
        pictures = [as_array(self.dataset[index][0]) for index in shown]
        thumbs = [jpeg(each, max(1, round(THUMB_HEIGHT * each.shape[1] / each.shape[0]))) for each in pictures]
        self.send({"kind": "thumbs", "images": images}, thumbs)

    def _do_score(self, index: int) -> None:
        (of, scores), first = self._scores(), self.inspections[0]
        if index not in scores:
            labeled = self.dataset.protocol.classes == self.protocol.classes
            scores[index] = image_score(first.model.network, self.dataset, index) if labeled else None
        self.send({"kind": "score", "index": index, "score": scores[index], "of": of})

    def _do_index(self, index: int) -> None:
        self.open_picture(Picture.of_dataset(self.dataset, index, self.network_size, self.protocol))

    def _do_path(self, path: str, label: str) -> None:
        if not path.strip():
            raise ValueError("no path is given")
        picture = Picture.of_file(path.strip(), self.network_size, self.protocol)
        self.open_picture(picture.labeled(label_ids(label.strip(), self.protocol)) if label.strip() else picture)

    def _do_upload(self, name: str, content: bytes) -> None:
        self.open_picture(Picture.of_file(Upload(name, content), self.network_size, self.protocol))

    def _do_upload_label(self, name: str, content: bytes) -> None:
        picture = self.inspections[0].picture.labeled(label_ids(Upload(name, content), self.protocol))
        self._show([replace(each, picture=picture) for each in self.inspections])

    def _do_model(self, which: int, path: str) -> None:
        device = next(self.inspections[0].model.network.parameters()).device
        self.choose(which, NamedModel.load(path.strip(), device=device) if path or not which else None)

    def _do_save(self) -> None:
        picture, record = save_inspection(self.results, self.state, self.inspections)
        self.send({"kind": "say", "text": f"Saved {picture} and {record.name}"})

    def _do_export(self) -> None:
        path = self.results / f"{file_stem(self.state, self.inspections)}.html"
        export_html(path, self.state, self.inspections)
        self.send({"kind": "file", "name": path.name, "text": f"Exported {path}."}, [path.read_bytes()])

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget, and for readers without a kernel the still figure and the readout."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        figure = io.BytesIO()
        inspection_figure(self.state, self.inspections).savefig(figure, format="png", dpi=90)
        text = "\n".join(f"{each.model.name}: {readout(self.state, each).text()}" for each in self.inspections)
        still_figure = {"text/plain": text, "image/png": base64.b64encode(figure.getvalue()).decode()}
        return data | still_figure, metadata

    def _ipython_display_(self) -> None:
        bundle, _ = self._repr_mimebundle_()
        picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).convert("RGB")
        display(bundle, raw=True)
        display(HTML(STILL.substitute(image=html_image(jpeg(np.asarray(picture), quality=92), bundle["text/plain"]))))


def image_score(network: S2FPN, dataset: SegmentationDataset, index: int) -> float | None:
    """mIoU (0..1) of one image, as `Evaluation.image_iou` has it; None for an image without a scored pixel."""
    protocol, (image, label) = dataset.protocol, dataset[index]
    pred = predicted(network, image, protocol.size).to(label.device)
    matrix = ConfusionMatrix(protocol.num_classes, protocol.ignore_id).update(pred[None], label[None])
    score = float(iou_from_totals(class_totals(matrix))[0].nanmean())
    return None if math.isnan(score) else score


def model_choices(results: Path, protocol: Protocol) -> list[tuple[str, str]]:
    """Released weights and runs under `results` that predict the protocol's classes: (name or path, text)."""
    runs = sorted({path.parent for path in results.rglob("*.safetensors") if path.with_name("result.json").exists()})
    known = [(name, name) for name in released_names()] + [(str(run), str(run.relative_to(results))) for run in runs]
    choices = []
    for choice in known:
        with contextlib.suppress(CheckpointError, KeyError, ValueError):
            found = checkpoint_protocol(choice[0])
            if found is not None and found.classes == protocol.classes:
                choices.append(choice)
    return choices
