"""The named recipes of presets.toml."""

import tomllib
from pathlib import Path
from typing import Any


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """{name: fields} of each recipe; one with a `base`, which stands above it, changes fields of that one."""
    presets: dict[str, dict[str, Any]] = {"": {}}
    for name, fields in tomllib.loads(path.read_text(encoding="utf-8")).items():
        presets[name] = presets[fields.pop("base", "")] | fields
    del presets[""]
    return presets


PRESETS = _read(Path(__file__).with_name("presets.toml"))
