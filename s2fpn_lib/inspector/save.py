"""What the inspector shows, kept: a picture and a JSON file that says where every number of it comes from."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s2fpn_lib.inspector.figure import inspection_figure
from s2fpn_lib.inspector.numbers import readout
from s2fpn_lib.inspector.state import Inspection, State
from s2fpn_lib.runs import config_hash, environment, write_atomic, write_json


def save_inspection(
    folder: str | Path, state: State, inspections: Sequence[Inspection], names: Sequence[str]
) -> tuple[Path, Path]:
    """Writes the still picture (PNG) and its record (JSON) to `folder`; the two paths.

    The same view of the same image by the same weights has the same name and replaces the earlier one.
    """
    stem = Path(folder) / file_stem(state, inspections, names)
    picture, record = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.json")
    buffer = io.BytesIO()
    inspection_figure(state, inspections, names).savefig(buffer, format="png", dpi=150)
    write_atomic(picture, buffer.getvalue())
    write_json(record, inspection_record(state, inspections, names) | {"environment": environment()})
    return picture, record


def file_stem(state: State, inspections: Sequence[Inspection], names: Sequence[str]) -> str:
    """A file name without suffix: image, pixel, and a few digits for all else that decides what is shown."""
    settings = {**_plain(state), "names": list(names), "provenance": [each.provenance for each in inspections]}
    image = re.sub(r"[^\w.-]+", "_", inspections[0].name).strip("._") or "image"
    return f"{image}-y{state.y}-x{state.x}-{config_hash(settings)[:6]}"


def inspection_record(state: State, inspections: Sequence[Inspection], names: Sequence[str]) -> dict[str, Any]:
    """The view in numbers: image, state, and of each model its provenance and the readouts of pixel and pins."""
    first = inspections[0]
    return {
        "image": first.name,
        "size": list(first.size),
        "protocol": first.protocol.name,
        "state": _plain(state),
        "models": [
            {
                "name": name,
                "revision": inspection.revision,
                "provenance": inspection.provenance,
                "warning": inspection.warning,
                "pixel": asdict(readout(state, inspection)),
                "pins": [asdict(readout(state.at(y, x, first.size), inspection)) for y, x in state.pins],
            }
            for name, inspection in zip(names, inspections, strict=True)
        ],
    }


def _plain(state: State) -> dict[str, Any]:
    return {**asdict(state), "hidden": sorted(state.hidden), "pins": [list(pin) for pin in state.pins]}
