"""What the inspector writes: a still picture, its numbers with provenance, and an HTML page.

The page needs no kernel and no network: its script answers to clicks and keys. It holds the image, the three most
probable classes of each drawn pixel, the gates, and for v2 the queries and keys (int16), from which the script computes
a pixel's distribution over the columns.
"""

import base64
import io
import itertools
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from torch import Tensor

from s2fpn_lib.attention.recorder import LevelCapture
from s2fpn_lib.inspector.numbers import LevelReadout, pin_readouts, readout, revision_note
from s2fpn_lib.inspector.state import Inspection, State
from s2fpn_lib.inspector.views import CONFIDENCE, JPEG, inspection_figure, jpeg
from s2fpn_lib.runs import atomic_file, config_hash, environment, write_atomic, write_json
from s2fpn_lib.viz.images import as_array

HERE = Path(__file__).parent
SCRIPTS = ("page_data.js", "page_pictures.js", "page.js")
STYLES = ("page.css", "click_canvas.css", "widget.css")
MAX_QUERY_VALUES = 1_000_000  # per level; a larger query map is written with a stride


def save_inspection(folder: str | Path, state: State, inspections: Sequence[Inspection]) -> tuple[Path, Path]:
    """Writes the still figure (PNG) and its record (JSON) to `folder`, replacing earlier ones; returns both paths."""
    picture, record = (Path(folder) / f"{file_stem(state, inspections)}.{suffix}" for suffix in ("png", "json"))
    with atomic_file(picture) as file:
        inspection_figure(state, inspections).savefig(file, format="png", dpi=150)
    write_json(record, inspection_record(state, inspections) | {"environment": environment()})
    return picture, record


def file_stem(state: State, inspections: Sequence[Inspection]) -> str:
    """File name without suffix: image, pixel, and a hash of everything else that decides what is shown."""
    names, provenance = zip(*((each.model.name, each.model.provenance) for each in inspections), strict=True)
    shown = config_hash({**_plain(state), "names": names, "provenance": provenance})
    image = re.sub(r"[^\w.-]+", "_", inspections[0].picture.name).strip("._") or "image"
    return f"{image}-y{state.y}-x{state.x}-{shown[:6]}"


def inspection_record(state: State, inspections: Sequence[Inspection]) -> dict[str, Any]:
    """The view in numbers: image, state, and per model its provenance and the readouts of the pixel and the pins."""
    return {
        "image": inspections[0].picture.name,
        "size": inspections[0].size,
        "protocol": inspections[0].protocol.name,
        "state": _plain(state),
        "models": [
            {
                "name": inspection.model.name,
                "revision": inspection.revision,
                "provenance": inspection.model.provenance,
                "warning": inspection.warning,
                "pixel": asdict(readout(state, inspection)),
                "pins": [asdict(pin) for pin in pin_readouts(state, inspection)],
            }
            for inspection in inspections
        ],
    }


def export_html(path: str | Path, state: State, inspections: Sequence[Inspection]) -> Path:
    """Writes the HTML page, a few MB, to `path` atomically and returns the path."""
    page = Template((HERE / "page.html").read_text()).substitute(
        title=escape(f"Inspection of {inspections[0].picture.name}"),
        style="".join((HERE / name).read_text() for name in STYLES),
        script="".join((HERE / name).read_text() for name in SCRIPTS),
        stills="\n".join(_still(replace(state, y=y, x=x), inspections) for y, x in ((state.y, state.x), *state.pins)),
        record=escape(json.dumps(inspection_record(state, inspections), indent=1)),
        data=json.dumps(_page_data(state, inspections)).replace("<", "\\u003c"),  # no tag can end the script
    )
    write_atomic(path, page)
    return Path(path)


def _plain(state: State) -> dict[str, Any]:
    return {**asdict(state), "hidden": sorted(state.hidden)}


def _still(state: State, inspections: Sequence[Inspection]) -> str:
    """The still figure with the sentences that describe it, as HTML."""
    figure = io.BytesIO()
    inspection_figure(state, inspections).savefig(figure, format="jpeg", dpi=100, pil_kwargs=JPEG)
    text = escape(" ".join(readout(state, each).sentence() for each in inspections))
    return f'<p>{text}</p><img alt="{text}" src="{_data_url(figure.getvalue())}">'


def _page_data(state: State, inspections: Sequence[Inspection]) -> dict[str, Any]:
    """What the page's script reads."""
    first, picture, protocol = inspections[0], inspections[0].picture, inspections[0].protocol
    image = as_array(first.drawn(picture.image))
    return {
        "name": picture.name,
        "size": first.size,
        "drawn": image.shape[:2],
        "stride": first.stride,
        "image": _data_url(jpeg(image)),
        "label": None if picture.label is None else _packed(first.drawn(picture.label).numpy()),
        "classes": protocol.classes,
        "palette": protocol.palette,
        "confidence_colors": CONFIDENCE.tolist(),
        "state": _plain(state),
        "models": [_model_data(state, inspection) for inspection in inspections],
    }


def _model_data(state: State, inspection: Inspection) -> dict[str, Any]:
    shares, ranked = inspection.drawn(inspection.probabilities).topk(min(3, inspection.protocol.num_classes), 0)
    ranked[0] = inspection.drawn(inspection.ids)  # topk may order equally probable classes differently
    return {
        "name": inspection.model.name,
        "note": revision_note(inspection),
        "warning": inspection.warning,
        "seen": inspection.seen,
        "ranked": _packed(ranked.numpy().astype(np.uint8)),
        "shares": _packed((shares.numpy() * 65535).round().astype("<u2")),
        "levels": list(map(_level_data, inspection.levels, readout(state, inspection).levels)),
    }


def _level_data(level: LevelCapture, found: LevelReadout) -> dict[str, Any]:
    auxiliary, gates = level.auxiliary, level.gates
    data = {
        "name": level.name,
        "size": level.size,
        "entries": found.entries,
        "own_distribution": found.own_distribution,
        "weight": found.weight(),
        "decides": None if auxiliary is None else _packed(auxiliary[0].argmax(0).numpy().astype(np.uint8)),
        "gates": None if gates is None else _packed(gates[0].numpy().astype("<f4")),
        "length": None if gates is None else level.strip_max.shape[-1],
    }
    if level.query is not None:
        strided = ((step, level.query[0, :, ::step, ::step]) for step in itertools.count(1))
        data["step"], query = next(pair for pair in strided if pair[1].numel() <= MAX_QUERY_VALUES)
        data["kept"] = query.shape[1:]
        data["query"], data["query_scale"] = _packed_int16(query)
        data["keys"], data["keys_scale"] = _packed_int16(level.strip_max[0])
    return data


def _packed_int16(tensor: Tensor) -> tuple[str, float]:
    """Packed int16 values and the factor that turns them back into the tensor's."""
    values = tensor.numpy()
    scale = max(float(np.abs(values).max()), 1e-12) / 32767
    return _packed((values / scale).round().astype("<i2")), scale


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes())).decode()


def _data_url(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
