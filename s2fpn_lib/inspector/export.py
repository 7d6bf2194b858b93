"""What the inspector writes: a still picture, its numbers with provenance, and an HTML page.

The page needs no kernel and no network. It and the widget run the same script on the same data: the image, the class
probabilities of each drawn pixel, the gates, and for v2 the queries and keys (int16), from which the script computes a
pixel's distribution over the columns; of large levels the page keeps one pixel per square of pixels.
The three largest probabilities have an error of at most 1e-5; all p are kept as round(255 sqrt(p)), within 0.004.
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

from s2fpn_lib.attention.recorder import LevelCapture
from s2fpn_lib.inspector import views
from s2fpn_lib.inspector.numbers import SCALES, LevelReadout, level_scale, readout, revision_note
from s2fpn_lib.inspector.state import Inspection, State, available_views
from s2fpn_lib.runs import atomic_file, config_hash, environment, write_atomic, write_json
from s2fpn_lib.viz.images import ERROR_COLOR, as_array, html_image, jpeg

HERE = Path(__file__).parent
SCRIPTS = ("data.js", "numbers.js", "layers.js", "pictures.js", "parts.js", "toolbar.js", "viewer.js")
MAX_QUERY_VALUES = 1_400_000  # of a level, in a page, shared by its v2 models; exact up to 360x480 pixels with one


def script(last: str) -> str:
    """The viewer's JavaScript, which ends with the file `last`."""
    return "\n".join((HERE / name).read_text() for name in (*SCRIPTS, last))


def style() -> str:
    """The viewer's style sheet."""
    return "".join((HERE / name).read_text() for name in ("viewer.css", "controls.css"))


def save_inspection(folder: str | Path, state: State, inspections: Sequence[Inspection]) -> tuple[Path, Path]:
    """Writes the still figure (PNG) and its record (JSON) to `folder`, replacing earlier ones; returns both paths."""
    picture, record = (Path(folder) / f"{file_stem(state, inspections)}.{suffix}" for suffix in ("png", "json"))
    with atomic_file(picture) as file:
        views.inspection_figure(state, inspections).savefig(file, format="png", dpi=150)
    write_json(record, inspection_record(state, inspections) | {"environment": environment()})
    return picture, record


def file_stem(state: State, inspections: Sequence[Inspection]) -> str:
    """File name without suffix: image, pixel, and a hash of everything else that decides what is shown."""
    names, provenance = zip(*((each.model.name, each.model.provenance) for each in inspections), strict=True)
    shown = config_hash({**state.plain(), "names": names, "provenance": provenance})
    image = re.sub(r"[^\w.-]+", "_", inspections[0].picture.name).strip("._") or "image"
    return f"{image}-y{state.y}-x{state.x}-{shown[:6]}"


def inspection_record(state: State, inspections: Sequence[Inspection]) -> dict[str, Any]:
    """The view in numbers: image, state, and per model its provenance and the readouts of the pixel and the pins."""
    first, models = inspections[0], []
    for each in inspections:
        about = {"name": each.model.name, "revision": each.revision, "provenance": each.model.provenance}
        pins = [asdict(readout(replace(state, y=y, x=x), each)) for y, x in state.pins]
        models.append({**about, "warning": each.warning, "pixel": asdict(readout(state, each)), "pins": pins})
    shown = {"image": first.picture.name, "size": first.size, "protocol": first.protocol.name}
    return {**shown, "state": state.plain(), "models": models}


def export_html(path: str | Path, state: State, inspections: Sequence[Inspection]) -> Path:
    """Writes the HTML page, a few MB, to `path` atomically and returns the path."""
    most = MAX_QUERY_VALUES // max(1, sum(each.revision == "v2" for each in inspections))
    page = Template((HERE / "page.html").read_text()).substitute(
        title=escape(f"Inspection of {inspections[0].picture.name}"),
        style=(HERE / "page.css").read_text() + style(),
        script=script("page.js"),
        stills="\n".join(still(replace(state, y=y, x=x), inspections) for y, x in ((state.y, state.x), *state.pins)),
        record=escape(json.dumps(inspection_record(state, inspections), indent=1)),
        data=base64.b64encode(packed(state, inspections, most)).decode(),
    )
    write_atomic(path, page)
    return Path(path)


def still(state: State, inspections: Sequence[Inspection]) -> str:
    """The still figure with the sentences that describe it, as HTML."""
    figure = io.BytesIO()
    views.inspection_figure(state, inspections).savefig(figure, format="jpeg", dpi=80)
    text = " ".join(readout(state, each).sentence() for each in inspections)
    return f"<p>{escape(text)}</p>{html_image(figure.getvalue(), text)}"


def packed(state: State, inspections: Sequence[Inspection], most: float = np.inf) -> bytes:
    """What the viewer's script reads, a zlib stream: the length of the header (8 bytes), the header, the arrays.

    The header is JSON, in which {"array": type, "at": offset, "length": n} stands for an array. most: query values of a
    level that are kept.
    """
    arrays = bytearray()

    def placed(values: np.ndarray) -> dict[str, Any]:
        at = len(arrays)
        arrays.extend(np.ascontiguousarray(values).tobytes())
        arrays.extend(bytes(-len(arrays) % 8))  # typed arrays start at a multiple of their item's size
        return {"array": values.dtype.str[1:], "at": at, "length": values.size}

    header = json.dumps(_content(state, inspections, most), default=placed).encode()
    header += b" " * (-len(header) % 8)
    return zlib.compress(len(header).to_bytes(8, "little") + header + arrays, 4)


def _content(state: State, inspections: Sequence[Inspection], most: float) -> dict[str, Any]:
    first, picture, protocol = inspections[0], inspections[0].picture, inspections[0].protocol
    image = as_array(first.drawn(picture.image))
    return {
        "name": picture.name,
        "size": first.size,
        "drawn": image.shape[:2],
        "stride": first.stride,
        "image": np.frombuffer(jpeg(image, quality=92, subsampling=0), np.uint8),
        "label": None if picture.label is None else first.drawn(picture.label).numpy(),
        "classes": protocol.classes,
        "palette": protocol.palette,
        "views": available_views(inspections),
        "scales": {view: scale.plain() for view, scale in SCALES.items()},
        "colors": {"wrong": ERROR_COLOR, "different": views.DIFFERENT, "gray": views.GRAY, "pin": views.PIN},
        "level_opacity": views.LEVEL_OPACITY,
        "faded": views.FADED,
        "state": state.at(state.y, state.x, first.size, first.stride).plain(),
        "models": [_model(state, inspection, most) for inspection in inspections],
    }


def _model(state: State, inspection: Inspection, most: float) -> dict[str, Any]:
    probabilities, levels = inspection.drawn(inspection.probabilities), readout(state, inspection).levels
    shares, ranked = probabilities.topk(min(3, inspection.protocol.num_classes), 0)
    ranked[0] = inspection.drawn(inspection.ids)  # topk may order equally probable classes differently
    return {
        "name": inspection.model.name,
        "revision": inspection.revision,
        "note": revision_note(inspection),
        "warning": inspection.warning,
        "seen": inspection.seen,
        "ranked": ranked.numpy().astype(np.uint8),
        "shares": (shares.numpy() * 65535).round().astype("<u2"),
        "probabilities": (probabilities.sqrt().numpy() * 255).round().astype(np.uint8),
        "scale": level_scale(inspection).plain(),
        "levels": [_level(*pair, most) for pair in zip(inspection.levels, levels, strict=True)],
    }


def _level(level: LevelCapture, found: LevelReadout, most: float) -> dict[str, Any]:
    auxiliary, gates = level.auxiliary, level.gates
    data = {
        **{name: getattr(found, name) for name in ("name", "size", "entries", "own_distribution")},
        "weight": found.weight(),
        "decides": None if auxiliary is None else auxiliary[0].argmax(0).numpy().astype(np.uint8),
        "gates": None if gates is None else gates[0].numpy().astype("<f4"),
        "length": None if gates is None else level.strip_max.shape[-1],
    }
    if level.query is not None:
        strided = ((step, level.query[0, :, ::step, ::step]) for step in itertools.count(1))
        data["step"], query = next(pair for pair in strided if pair[1].numel() <= most)
        data["kept"] = query.shape[1:]
        data["gates"] = gates[0, :, :: data["step"], :: data["step"]].numpy().astype("<f4")
        for name, tensor in (("query", query), ("keys", level.strip_max[0])):
            values = tensor.numpy()
            data[f"{name}_scale"] = scale = max(float(np.abs(values).max()), 1e-12) / 32767
            data[name] = (values / scale).round().astype("<i2")
    return data
