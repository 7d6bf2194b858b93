"""One inspection as one HTML page that needs no kernel and no network: it answers to clicks and keys by itself.

In the page are the image, the three most probable classes of every drawn pixel, the gates, and for v2 the queries and
keys (16 bits each) that the page's own script makes a pixel's distribution over the columns from.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from s2fpn_lib.attention.recorder import LevelCapture
from s2fpn_lib.inspector.figure import inspection_figure
from s2fpn_lib.inspector.numbers import LevelReadout, readout, revision_note
from s2fpn_lib.inspector.save import inspection_record
from s2fpn_lib.inspector.state import Inspection, State
from s2fpn_lib.inspector.views import CONFIDENCE
from s2fpn_lib.runs import write_atomic
from s2fpn_lib.viz.images import as_picture

HERE = Path(__file__).parent
SCRIPTS = ("page_data.js", "page_pictures.js", "page.js")
STYLES = ("page.css", "click_canvas.css", "widget.css")
QUERIES = 1_000_000  # numbers kept of a level's queries; of a larger map every t-th pixel's


def export_html(path: str | Path, state: State, inspections: Sequence[Inspection], names: Sequence[str]) -> Path:
    """Writes the page, a few MB, to `path`, atomically; the path. names: the models', one an inspection."""
    write_atomic(path, inspection_html(state, inspections, names))
    return Path(path)


def inspection_html(state: State, inspections: Sequence[Inspection], names: Sequence[str]) -> str:
    """The page's text."""
    first = inspections[0]
    views = [state, *(replace(state, y=y, x=x) for y, x in state.pins)]
    stills = [_picture(inspection_figure(view, inspections, names)) for view in views]
    captions = [" ".join(readout(view, each).sentence() for each in inspections) for view in views]
    page = Template((HERE / "page.html").read_text())
    return page.substitute(
        title=escape(f"Inspection of {first.name}" if first.name else "Inspection"),
        style="".join((HERE / name).read_text() for name in STYLES),
        script="".join((HERE / name).read_text() for name in SCRIPTS),
        stills="\n".join(
            f'<p>{escape(text)}</p><img alt="{escape(text)}" src="{picture}">'
            for text, picture in zip(captions, stills, strict=True)
        ),
        record=escape(json.dumps(inspection_record(state, inspections, names), indent=1)),
        data=json.dumps(_data(state, inspections, names)).replace("<", "\\u003c"),
    )


def _data(state: State, inspections: Sequence[Inspection], names: Sequence[str]) -> dict[str, Any]:
    """What the page's script reads."""
    first, s = inspections[0], inspections[0].stride
    image = as_picture(first.image[:, ::s, ::s])
    return {
        "name": first.name,
        "size": list(first.size),
        "drawn": list(image.shape[:2]),
        "stride": s,
        "image": _data_url(Image.fromarray(image)),
        "label": None if first.label is None else _packed(first.label[::s, ::s].numpy()),
        "classes": list(first.protocol.classes),
        "palette": [list(color) for color in first.protocol.palette],
        "confidence_colours": CONFIDENCE.tolist(),
        "state": inspection_record(state, inspections, names)["state"],
        "models": [_model(state, *pair) for pair in zip(inspections, names, strict=True)],
    }


def _model(state: State, inspection: Inspection, name: str) -> dict[str, Any]:
    s = inspection.stride
    shares, ranked = inspection.probabilities[:, ::s, ::s].topk(min(3, len(inspection.protocol.classes)), 0)
    ranked[0] = inspection.ids[::s, ::s]  # where classes are equally probable, topk may choose another one
    levels = zip(inspection.levels, readout(state, inspection).levels, strict=True)
    return {
        "name": name,
        "note": revision_note(inspection),
        "warning": inspection.warning,
        "ranked": _packed(ranked.numpy().astype(np.uint8)),
        "shares": _packed((shares.numpy() * 65535).round().astype("<u2")),
        "levels": [_level(*pair) for pair in levels],
    }


def _level(level: LevelCapture, found: LevelReadout) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": level.name,
        "size": list(level.size),
        "entries": found.entries,
        "own_distribution": found.own_distribution,
        "weight": found.weight(),
        "decides": None,
        "gates": None,
    }
    if level.auxiliary is not None:
        facts["decides"] = _packed(level.auxiliary[0].argmax(0).numpy().astype(np.uint8))
    if level.gates is not None:
        facts |= {"gates": _packed(level.gates[0].numpy().astype("<f4")), "length": level.strip_max.shape[-1]}
    if level.query is not None:
        step = 1
        while level.query[0, :, ::step, ::step].numel() > QUERIES:
            step += 1
        query = level.query[0, :, ::step, ::step]
        facts |= {"step": step, "kept": list(query.shape[1:])}
        facts["query"], facts["query_scale"] = _sixteen_bits(query)
        facts["keys"], facts["keys_scale"] = _sixteen_bits(level.strip_max[0])
    return facts


def _sixteen_bits(tensor: Tensor) -> tuple[str, float]:
    """Packed int16 values and the number by which they are to be multiplied."""
    values = tensor.numpy()
    scale = max(float(np.abs(values).max()), 1e-12) / 32767
    return _packed((values / scale).round().astype("<i2")), scale


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes())).decode()


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _picture(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return _data_url(Image.open(buffer).convert("RGB"))
