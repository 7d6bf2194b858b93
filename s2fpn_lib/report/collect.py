"""What lies under the results folder: runs, curves, evaluations and speed rows, read afresh at every call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.runs import read_json, read_rows, results_root
from s2fpn_lib.workbench.provenance import DEMO_RUN, describe_switches, recipe_hashes

WHERE = ("device", "height", "width", "batch", "stage")  # speeds compare within these
WAY = ("network", "revision", "backend", "precision")


def collect_runs(root: str | Path | None = None) -> pd.DataFrame:
    """One row a finished training run under `root` (None: the results folder): its result.json and its folder `run`.

    A study's run also says its study and variant.

    Read afresh from the run directories at every call; there is no table to edit or to go stale. Stand-ins
    (`provenance.DEMO_RUN`), trained for seconds to have something to show, are left out.
    """
    root = Path(root or results_root())
    rows = []
    for path in sorted(root.rglob("result.json")):
        if (path.parent / "config.json").exists() and path.parent.name != DEMO_RUN:
            recipe = read_json(path.parent / "config.json")
            variant = path.parent.parent / "variant.json"
            named = read_json(variant) if variant.exists() else {}
            rows.append(
                {
                    "run": path.parent.relative_to(root).as_posix(),
                    **read_json(path),
                    "switches": describe_switches(recipe.get("switches", {})),
                    **recipe_hashes(recipe),
                    **{key: named[key] for key in ("study", "variant") if key in named},
                }
            )
    return pd.DataFrame(rows)


def collect_curves(root: str | Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """{run: rows of its metrics.jsonl} of every run directory under `root`, the one that was written last at the end:
    unfinished ones too, stand-ins left out."""
    root = Path(root or results_root())
    found = {}
    for path in _oldest_first(root.rglob("metrics.jsonl")):
        if path.parent.name != DEMO_RUN and (rows := read_rows(path)):
            found[path.parent.relative_to(root).as_posix()] = rows
    return found


def collect_evaluations(root: str | Path | None = None) -> dict[str, Evaluation]:
    """{folder: evaluation} of every evaluation.json under `root`, the one that was written last at the end."""
    root = Path(root or results_root())
    return {
        path.parent.relative_to(root).as_posix(): Evaluation.load(path)
        for path in _oldest_first(root.rglob("evaluation.json"))
    }


def collect_speed(root: str | Path | None = None) -> pd.DataFrame:
    """Every row of the files speed*.jsonl and speed*.csv under `root`, with the file in `file`; a report's own tables
    are no measurements."""
    root = Path(root or results_root())
    rows: list[dict[str, Any]] = []
    for path in sorted(root.rglob("speed*.jsonl")):
        rows += [{"file": path.relative_to(root).as_posix(), **row} for row in read_rows(path)]
    for path in sorted(path for path in root.rglob("speed*.csv") if path.parent != root / "tables"):
        found = pd.read_csv(path).to_dict("records")
        rows += [{"file": path.relative_to(root).as_posix(), **row} for row in found]
    return pd.DataFrame(rows)


def latest_speed(speed: pd.DataFrame) -> pd.DataFrame:
    """Of repeated measurements of one thing the last one; with a score and without are two things."""
    keys = [c for c in (*WHERE, *WAY, "protocol") if c in speed]
    ordered = speed.sort_values("time", kind="stable") if "time" in speed else speed
    return ordered.drop_duplicates(keys, keep="last") if keys else ordered


def evaluation_rows(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """One row an evaluation, its folder in `evaluation`.

    Where only the whole `recipe` is known, with its seed, that stands in for `recipe_without_seed`: such rows repeat
    nothing. Rows of a study's variant need no recipe to be told apart.
    """
    frame = pd.DataFrame([{"evaluation": name, **evaluation.row()} for name, evaluation in evaluations.items()])
    if "recipe" in frame:
        unknown = frame["recipe"] if "variant" not in frame else frame["recipe"].where(frame["variant"].isna())
        known = frame.get("recipe_without_seed", unknown)
        frame["recipe_without_seed"] = known.where(known.notna(), unknown)
    return frame


def _oldest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path))
