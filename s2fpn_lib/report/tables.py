"""Evaluation rows as tables: no column mixes two protocols, and every table says how its numbers came about."""

import html
import re
import tomllib
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from s2fpn_lib.data import get_protocol
from s2fpn_lib.runs import write_atomic

# Two runs are repetitions of each other if they agree in these columns; columns that a frame lacks are skipped.
REPETITION = (
    *("study", "variant", "dataset", "trained_on", "protocol", "train_split", "split", "data", "images"),
    *("model", "revision", "switches", "pretraining", "recipe_without_seed", "training_recipe", "checkpoint_rule"),
    *("convention", "scales", "flip", "window", "device", "amp"),
)
SCORES = ("miou", "published_miou", "pixel_accuracy", "class_accuracy", "fwiou", "boundary_f")
SHARES = {*SCORES, "iou", "precision", "recall", "label_share", "difference", "spread", "changed", "val_miou"}
_HEADINGS = tomllib.loads(Path(__file__).with_name("headings.toml").read_text(encoding="utf-8"))
DATASETS = {"roadscenes": "RoadScenes", "camvid": "CamVid", "cityscapes": "Cityscapes"}
RUN_SETTINGS = ("dataset", "protocol", "device", "amp", "train_split", "val_split")


def heading(key: str) -> str:
    """The words for a stored key: "frequency-weighted IoU" for "fwiou", "data ms" for "data_ms"."""
    return _HEADINGS["keys"].get(key) or " ".join(_HEADINGS["words"].get(word, word) for word in key.split("_"))


def network_name(model: str, revision: str = "") -> str:
    """The network's printed name: "S2-FPN34M v2" for ("s2fpn34m", "v2"); other networks keep their names."""
    name = re.sub(r"^s2fpn_lite", "S2-FPN-Lite", model)
    name = re.sub(r"^s2fpn(\d+m?)", lambda found: f"S2-FPN{found[1].upper()}", name)
    return f"{name} {revision}".strip()


def variant_name(variant: str) -> str:
    """The printed name of a study's variant: "without SSAM" for "no-ssam"; others keep their names."""
    part = variant.removeprefix("no-")
    return variant if part == variant else f"without {part.upper() if len(part) < 5 else part.replace('-', ' ')}"


def protocol_name(protocol: str) -> str:
    """The printed name of a protocol or dataset: "RoadScenes", "CamVid (camvid-segnet-360x480)"; others stay."""
    name = DATASETS.get(protocol.split("-")[0], protocol)
    return name if protocol in (name, *DATASETS) else f"{name} ({protocol})"


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with variants, datasets, protocols, and conventions as a reader sees them."""
    names = {"variant": variant_name, **dict.fromkeys(("dataset", "trained_on", "protocol"), protocol_name)}
    names["convention"] = lambda text: text.replace("mean over ", "").replace("zero TP counts", "one never found is")
    return rows.assign(**{c: rows[c].map(name, na_action="ignore") for c, name in names.items() if c in rows})


def percent(mean: float, std: float | None = None, sign: str = "") -> str:
    """0.7123 -> "71.2"; with a standard deviation "71.2 ± 0.4"; empty for an unknown number. sign: "+" or ""."""
    if pd.isna(mean):
        return ""
    return f"{100 * mean:{sign}.1f}" + ("" if pd.isna(std) else f" ± {100 * std:.1f}")


def significant(number: float) -> str:
    """The number with three significant digits: "0.0123", "5.80", "1230", "2.4e-06"; empty for an unknown one."""
    if pd.isna(number):
        return ""
    return f"{number:.1e}" if 0 < abs(number) < 1e-3 else format(Decimal(f"{number:#.3g}"), "f")


def words(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns to show: headings in words with their units, and numbers as texts, in the rounding of all tables.

    Shares (in percent) have one decimal, parameters (1e6) and multiply-accumulates (1e9) two, others three digits.
    """
    shown = {}
    for key, column in rows.items():
        name = heading(key)
        if not pd.api.types.is_float_dtype(column) and key not in ("parameters", "gmacs"):
            shown[name] = ["" if pd.isna(value) else value for value in column]
        elif key in SHARES:
            shown[f"{name} %"] = list(map(percent, column))
        elif key in ("parameters", "parameters_m", "gmacs"):
            name, column = (f"{name} M", column / 1e6) if key == "parameters" else (name, column)
            shown[name] = ["" if pd.isna(value) else f"{value:.2f}" for value in column]
        else:
            shown[name] = list(map(significant, column))
    return pd.DataFrame(shown, index=rows.index)


def split_by_protocol(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{protocol: its rows}, in order of appearance; keys of published rows have dataset and input size, too."""
    if frame.empty:
        return {}
    parts = ["dataset", "protocol", "input"] if "miou_percent" in frame else ["protocol"]
    keys = frame.reindex(columns=parts).fillna("unstated").agg(" / ".join, axis=1)
    return dict(list(frame.groupby(keys, sort=False)))


def one_protocol(frame: pd.DataFrame) -> str:
    """The frame's only protocol. Raises ValueError that names all if there are several, or if a row has none."""
    if unstated := frame.reindex(columns=["protocol"])["protocol"].isna().sum():
        raise ValueError(f"{unstated} rows name no protocol: a score without its protocol cannot go into a table")
    found = sorted(split_by_protocol(frame))
    if len(found) > 1:
        refusal = f"refusing to put {len(found)} protocols into one column: {'; '.join(found)}"
        raise ValueError(f"{refusal}. Their scores cannot be compared; make one table each: split_by_protocol")
    return found[0] if found else ""


def over_seeds(frame: pd.DataFrame, scores: Sequence[str] = SCORES) -> pd.DataFrame:
    """Mean and sample standard deviation over repetitions: rows that agree in `REPETITION`.

    Checkpoints of one seed that agree in all of these have a row each. Returns the keys, `runs`, for each score s the
    columns s and s_std (NaN for a single run), and the largest `parameters`, `gmacs`, and `images_seen`. Raises
    ValueError for several protocols, and if a seed would count twice.
    """
    one_protocol(frame)
    keys = [c for c in REPETITION if c in frame]
    seed = ["seed"] if "seed" in frame else []
    if "checkpoint_sha" in frame and frame.duplicated([*keys, *seed]).any():
        keys.append("checkpoint_sha")
    twice = frame[frame.duplicated([*keys, *seed])]
    if seed and len(twice):
        row = twice.iloc[0]
        raise ValueError(f"seed [{row['seed']}] occurs more than once in {row[keys].to_dict()}: drop the repetition")
    columns = {"runs": ("protocol", "size")}
    for score in (s for s in scores if s in frame):
        columns |= {score: (score, "mean"), f"{score}_std": (score, "std")}
    columns |= {c: (c, "max") for c in ("parameters", "gmacs", "images_seen") if c in frame}
    return frame.groupby(keys, dropna=False, sort=False).agg(**columns).reset_index()


def score_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per network and recipe of one protocol: scores in percent ± deviation, and the keys that differ."""
    table = named(over_seeds(frame))
    out = table[[*_differing(table), "runs"]].rename(columns=heading)
    out.insert(0, "network", _networks(table))
    if any(seen := seen_words(table)):
        out["scored images trained on"] = [words or "none known" for words in seen]
    for score in SCORES:
        if score in table:
            out[f"{heading(score)} %"] = list(map(percent, table[score], table[f"{score}_std"]))
    return out.join(words(table.reindex(columns=[c for c in ("parameters", "gmacs") if c in table])))


def seen_words(rows: pd.DataFrame, text: str = "{}") -> list[str]:
    """How many scored images each row's weights were trained on, "all 101" or "17 of 101", in `text`; "" for none."""
    numbers = rows.reindex(columns=["images_seen", "images"]).astype(float).fillna(0).to_numpy()
    found = [(f"all {n:g}" if n == images else f"{n:g} of {images:g}") if n else "" for n, images in numbers]
    return [text.format(number) if number else "" for number in found]


def class_score_table(frame: pd.DataFrame) -> pd.DataFrame:
    """IoU in %, mean ± standard deviation over seeds: one row per class, then the mean, one column per network."""
    scores = {f"iou_{name}": name for name in get_protocol(one_protocol(frame)).classes} | {"miou": "mean IoU"}
    table = over_seeds(frame, list(scores))
    out = pd.DataFrame({"class": list(scores.values())})
    differing = _differing(table)
    differing = [c for c in differing if c != "switches" or "variant" not in differing]  # whose name stands for them
    seen = seen_words(table, " (trained on {} images)")
    for name, row, remark in zip(short_names(table, differing), table.to_dict("records"), seen, strict=True):
        out[name + remark] = [percent(row[score], row[f"{score}_std"]) for score in scores]
    return out


def run_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per training run of one protocol. runs: of `collect_runs`."""
    one_protocol(runs.fillna({"protocol": "unstated"}))
    columns = ["run", "pretraining", "seed", "epochs", "steps", "seconds", "checkpoint_rule"]
    columns += [c for c in RUN_SETTINGS if c in runs and runs[c].nunique(dropna=False) > 1]
    out = named(runs)[[c for c in [*columns, "stopped_by"] if c in runs]].rename(columns=heading)
    out.insert(1, "network", _networks(runs))
    if "seconds" in out:
        out["seconds"] = out["seconds"].round().astype("Int64")
    if (seen := runs.get("val_images_seen", pd.Series(0)).fillna(0)).any():
        out["validation images trained on"] = [f"{number:g}" for number in seen]
    if "eval_images" in runs:
        out["validation images"] = [f"{number:g}, evenly spaced" if number else "all" for number in runs["eval_images"]]
    return out.join(words(runs[["val_miou"]].astype(float)))


def provenance(rows: pd.DataFrame, columns: Sequence[str] = REPETITION) -> str:
    """How the rows' numbers came about, as one line: what all rows share, seeds, checkpoints, and code versions."""
    shared = {c: each.iloc[0] for c, each in named(rows).items() if c in columns and each.nunique(dropna=False) == 1}
    shared = {c: shared[c] for c in columns if not pd.isna(shared.get(c))}
    parts = [f"{heading(c)}: {'no' if str(value) == 'False' else value}" for c, value in shared.items()]
    rows = rows.assign(git_sha=rows["git_sha"].str[:10] if "git_sha" in rows else None)
    for column, name in {"seed": "seeds", "checkpoint": "checkpoints", "torch": "torch", "git_sha": "code"}.items():
        if column in rows:
            values = sorted(rows[column].dropna().unique())
            listed = ", ".join(f"{value:g}" if column == "seed" else value for value in values[:6])
            more = f" and {len(values) - 6} more" if len(values) > 6 else ""
            parts.append(f"{name}: {listed or 'unstated'}{more}")
    return "; ".join(parts)


def short_names(rows: pd.DataFrame, columns: Sequence[str] = ()) -> list[str]:
    """One short name per row: the variant, the network (if several, or no variant), and the values of `columns`."""
    networks, names = _networks(rows), []
    for row, network in zip(named(rows).to_dict("records"), networks, strict=True):
        words = [] if pd.isna(row.get("variant")) else [row["variant"]]
        if len(set(networks)) > 1 or not words:
            words.append(network)
        others = [c for c in columns if c not in ("variant", "model", "revision") and not pd.isna(row.get(c))]
        words += [f"seed {row[c]:g}" if c == "seed" else str(row[c]) for c in others]
        names.append(", ".join(words))
    return names


def evaluation_names(rows: pd.DataFrame) -> dict[str, str]:
    """{short name: folder of the evaluation}, with seed and checkpoint as far as needed, and what was trained on."""
    for more in ([], ["checkpoint_sha"], ["evaluation"]):
        names = short_names(rows, ["seed", *more])
        if len(set(names)) == len(names):
            break
    seen = seen_words(rows, " (trained on {} images)")
    return {name + remark: folder for name, remark, folder in zip(names, seen, rows["evaluation"], strict=True)}


def _networks(rows: pd.DataFrame) -> list[str]:
    """The name of each row's network; "unknown network" without a model."""
    known = rows.reindex(columns=["model", "revision"]).fillna({"model": "unknown network", "revision": ""})
    return list(map(network_name, known["model"], known["revision"]))


def _differing(table: pd.DataFrame) -> list[str]:
    """Key columns besides the network in which the rows differ; hashes only if nothing else tells the rows apart."""
    keys = [c for c in table if c in (*REPETITION, "checkpoint_sha") and table[c].nunique(dropna=False) > 1]
    readable = [c for c in keys if c not in ("data", "recipe_without_seed", "training_recipe", "checkpoint_sha")]
    told_apart = len(table) < 2 or (readable and not table.duplicated(readable).any())
    return [c for c in (readable if told_apart else keys) if c not in ("model", "revision")]


class TableFolder:
    """A folder of tables, each as CSV to compute with, LaTeX to print, and HTML to read."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.written = {"results", "per_class"}  # of `write_results`

    def save(self, name: str, table: pd.DataFrame, caption: str, origin: str = "") -> Styler:
        """Writes <name>.csv, .tex, and .html, each atomically, and returns the table to display, its caption below.

        origin: how the numbers came about (of `provenance`), which ends the caption and is folded in HTML.
        """
        from nbconvert.filters import escape_latex  # its import takes 1.6 s

        name = re.sub(r"[^\w-]+", "-", name)
        text = [c for c in table if not table[c].astype(str).str.fullmatch(r"([+-]?\d[\d.]*( .*)?|–)?").all()]
        below = "caption-side: bottom; text-align: left; padding-top: 0.4em"
        folded = f"<details><summary>How these numbers came about</summary>{html.escape(origin)}</details>"
        shown = table.style.hide(axis="index").set_caption(html.escape(caption) + folded * bool(origin)).set_uuid(name)
        shown.format(escape="html", na_rep="", precision=2).format_index(escape="html", axis="columns")
        shown.set_table_styles({c: [{"selector": "", "props": "text-align: left"}] for c in text})
        shown.set_table_styles([{"selector": "caption", "props": below}], overwrite=False)
        below_latex = {"caption": escape_latex(f"{caption} {origin}".strip()), "label": f"tab:{name}"}
        latex = table.to_latex(index=False, escape=True, na_rep="", position="t", **below_latex).replace("±", r"$\pm$")
        texts = {"csv": table.to_csv(index=False), "tex": latex, "html": shown.to_html(doctype_html=True)}
        for kind, content in texts.items():
            write_atomic(self.folder / f"{name}.{kind}", content)
        self.written.add(name)
        return shown

    def remove_others(self) -> None:
        """Removes the files that this object did not write: tables of things that no longer exist."""
        for path in self.folder.glob("*"):
            if path.is_file() and path.stem not in self.written:
                path.unlink()
