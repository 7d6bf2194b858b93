"""Result rows into tables that say where every number comes from, and never mix protocols in a column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from s2fpn_lib.data import get_protocol

PUBLISHED = Path(__file__).resolve().parent / "published.csv"
# What must agree for two runs to be repetitions of each other; a frame's missing columns are passed over.
REPETITION = (
    "study",
    "variant",
    "dataset",
    "trained_on",
    "protocol",
    "train_split",
    "split",
    "images",
    "model",
    "revision",
    "switches",
    "pretraining",
    "recipe_without_seed",
    "training_recipe",
    "checkpoint_rule",
    "convention",
    "scales",
    "flip",
    "window",
    "device",
    "amp",
)
SCORES = ("miou", "published_miou", "pixel_accuracy", "class_accuracy", "fwiou", "boundary_f")


class ProtocolMixError(ValueError):
    """Numbers of different protocols were about to share a column."""


def one_protocol(frame: pd.DataFrame) -> str:
    """The frame's only protocol (with its dataset and input size, for published rows).

    Raises ProtocolMixError naming every protocol found; ValueError where a row has none.
    """
    if "protocol" not in frame:
        raise ValueError("these rows have no column 'protocol': a score without its protocol cannot go into a table")
    parts = [c for c in ("dataset", "protocol", "input") if c in frame] if "miou_percent" in frame else ["protocol"]
    if frame["protocol"].isna().any():
        raise ValueError(f"{int(frame['protocol'].isna().sum())} rows name no protocol: add it before tabulating them")
    found = frame[parts].fillna("unstated").drop_duplicates().agg(" / ".join, axis=1).tolist()
    if len(found) > 1:
        raise ProtocolMixError(
            f"refusing to put {len(found)} protocols into one column: {'; '.join(sorted(found))}. Their scores cannot"
            " be compared; make one table each: split_by_protocol(frame)"
        )
    return found[0] if found else ""


def split_by_protocol(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{protocol: its rows}, in order of appearance; published rows are told apart by dataset and input size as well."""
    parts = [c for c in ("dataset", "protocol", "input") if c in frame] if "miou_percent" in frame else ["protocol"]
    keys = frame[parts].fillna("unstated").agg(" / ".join, axis=1)
    return {key: frame[keys == key] for key in keys.unique()}


def load_published(path: str | Path = PUBLISHED) -> pd.DataFrame:
    """Published numbers with their sources.

    Columns: dataset, protocol, model, revision, split, miou_percent, fps, device, input, source. Empty cells are
    unknown (NaN, or "" in `revision`), never zero.
    """
    frame = pd.read_csv(path)
    return frame.assign(revision=frame["revision"].fillna(""))


def over_seeds(frame: pd.DataFrame, scores: Sequence[str] = SCORES, by: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean and sample standard deviation of repetitions: rows that agree in `by` (None: `REPETITION`) but for the seed.

    For each score s the columns s, s_std (NaN for a single run), and `runs`, `seeds` say over what. The frame must hold
    one protocol (ProtocolMixError). A seed that occurs twice in a group is an error: it would count twice.
    """
    one_protocol(frame)
    keys = [c for c in (by or REPETITION) if c in frame]
    scores = [s for s in scores if s in frame]
    rows = []
    for key, group in frame.groupby(keys, dropna=False, sort=False):
        if "seed" in group and group["seed"].duplicated().any():
            twice = sorted(group.loc[group["seed"].duplicated(), "seed"].unique().tolist())
            raise ValueError(
                f"seed {twice} occurs more than once in {dict(zip(keys, key, strict=True))}: drop the repetition, or"
                " add to `by` the column in which they differ"
            )
        row = dict(zip(keys, key, strict=True))
        row |= {"runs": len(group), "seeds": " ".join(str(s) for s in group["seed"]) if "seed" in group else ""}
        for score in scores:
            row |= {score: group[score].mean(), f"{score}_std": group[score].std()}
        rows.append(row)
    return pd.DataFrame(rows)


def percent(mean: float, std: float | None = None, digits: int = 2) -> str:
    """0.7123 -> "71.23"; with a spread "71.23 ± 0.41"; empty for an unknown number."""
    if pd.isna(mean):
        return ""
    return f"{100 * mean:.{digits}f}" + ("" if std is None or pd.isna(std) else f" ± {100 * std:.{digits}f}")


def score_table(frame: pd.DataFrame, scores: Sequence[str] = SCORES, by: Sequence[str] | None = None) -> pd.DataFrame:
    """The table to print: one protocol, scores in percent as mean ± std over seeds.

    Columns that are the same in every row are left out; `constants` names them for the line under the table.
    """
    table = over_seeds(frame, scores, by)
    out = table[[*_telling(table, by), "runs"]].copy()
    for score in scores:
        if score in table:
            pairs = zip(table[score], table[f"{score}_std"], strict=True)
            out[f"{SCORE_NAMES.get(score, score)} %"] = [percent(mean, std) for mean, std in pairs]
    return out


def class_score_table(frame: pd.DataFrame, by: Sequence[str] | None = None) -> pd.DataFrame:
    """IoU in percent, mean ± std over seeds: one line a class and one for their mean, one column a network.

    frame: evaluation rows of one protocol. A class in neither labels nor predictions has empty cells.
    """
    scores = {f"iou_{name}": name for name in get_protocol(one_protocol(frame)).classes} | {"miou": "mean IoU"}
    table = over_seeds(frame, list(scores), by)
    out = pd.DataFrame({"class": list(scores.values())})
    for name, row in zip(_names(table, _telling(table, by)), table.to_dict("records"), strict=True):
        out[name] = [percent(row[score], row[f"{score}_std"], digits=1) for score in scores]
    return out


def _names(table: pd.DataFrame, telling: list[str]) -> list[str]:
    """A short name for each row: its variant where it has one, its network where several differ, what else differs."""
    several = table[[c for c in ("model", "revision") if c in table]].drop_duplicates().shape[0] > 1
    told = ("variant", "model", "revision", *(("switches",) if "variant" in telling else ()))
    others = [c for c in telling if c not in told]
    names = []
    for row in table.to_dict("records"):
        words = [row["variant"]] if "variant" in telling and not pd.isna(row["variant"]) else []
        if several or not words:
            words.append(network_name(str(row.get("model", "")), str(row.get("revision", ""))))
        names.append(", ".join([*words, *(str(row[c]) for c in others if not pd.isna(row[c]))]))
    return names


def _telling(table: pd.DataFrame, by: Sequence[str] | None) -> list[str]:
    """Key columns by which the rows differ, and the network's name in any case. Hashes only where nothing else does."""
    keys = [c for c in table.columns if c in (by or REPETITION)]
    shown = [c for c in keys if c in ("model", "revision") or table[c].nunique(dropna=False) > 1]
    readable = [c for c in shown if c not in ("recipe_without_seed", "training_recipe")]
    return shown if table.duplicated(readable).any() else readable


SCORE_NAMES = {
    "miou": "mIoU",
    "published_miou": "mIoU, published convention",
    "val_miou": "val mIoU",
    "pixel_accuracy": "pixel accuracy",
    "class_accuracy": "class accuracy",
    "fwiou": "frequency-weighted IoU",
    "boundary_f": "boundary F",
}


def constants(frame: pd.DataFrame, columns: Sequence[str] = REPETITION) -> str:
    """What all rows share, as one line: "protocol roadscenes; split val; ..."; the provenance under a table."""
    shared = [(c, frame[c].iloc[0]) for c in columns if c in frame and frame[c].nunique(dropna=False) == 1]
    return "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in shared if not pd.isna(value))


def beside_published(
    ours: pd.DataFrame, published: pd.DataFrame | None = None, by: Sequence[str] | None = None
) -> pd.DataFrame:
    """Our mean mIoU per network beside the published ones, each protocol and source in a column of its own.

    ours: rows of one protocol with model, revision, split, miou. Columns: network, "ours: <protocol>, <split>", and one
    for each (published protocol, split, input) of the same dataset. Empty: not measured or not published. Different
    recipes of one network are not averaged: each has its mean and the number of its runs.
    """
    protocol = one_protocol(ours)
    dataset = protocol.split("-")[0]
    published = load_published() if published is None else published
    published = published[published["dataset"] == dataset]
    table: dict[str, dict[str, str]] = {}
    for split, rows in ours.groupby("split"):
        for (model, revision), group in rows.groupby(["model", "revision"], dropna=False):
            recipes = over_seeds(group, ["miou"], by).itertuples()
            text = "; ".join(f"{percent(each.miou, each.miou_std)} (n {each.runs})" for each in recipes)
            table.setdefault(network_name(model, revision), {})[f"ours: {protocol}, {split}"] = text
    for row in published.itertuples():
        column = f"{row.protocol}, {row.split}, {row.input}"
        table.setdefault(network_name(row.model, row.revision), {})[column] = _published(row.miou_percent)
    frame = pd.DataFrame(table).T.fillna("").rename_axis("network").reset_index()
    ours_first = sorted(frame.columns[1:], key=lambda c: not c.startswith("ours"))
    return frame[["network", *ours_first]]


def published_tables(published: pd.DataFrame | None = None) -> dict[str, pd.DataFrame]:
    """{dataset / protocol / input: network, split, mIoU %, FPS, device, source}, Cityscapes first."""
    published = load_published() if published is None else published
    out = {}
    for key, rows in split_by_protocol(published.sort_values("dataset", kind="stable", ascending=False)).items():
        out[key] = pd.DataFrame(
            {
                "network": [network_name(row.model, row.revision) for row in rows.itertuples()],
                "split": rows["split"].to_numpy(),
                "mIoU %": [_published(value) for value in rows["miou_percent"]],
                "FPS": ["" if pd.isna(value) else f"{value:g}" for value in rows["fps"]],
                "device": rows["device"].fillna("").to_numpy(),
                "source": rows["source"].to_numpy(),
            }
        )
    return out


def _published(value: float) -> str:
    """A percentage with the digits its authors give, one at least: 71.0, 74.76."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:g}"


def network_name(model: str, revision: str = "") -> str:
    """s2fpn18, v1 and S2-FPN18, v1 are the same network."""
    name = model
    if model.startswith("s2fpn"):
        name = "S2-FPN-Lite" if model == "s2fpn_lite" else model.replace("s2fpn", "S2-FPN").replace("m", "M")
    return f"{name} {revision}".strip()


def to_latex(table: pd.DataFrame, caption: str, label: str) -> str:
    """A LaTeX table (booktabs) of a table made here; special characters escaped."""
    text = table.to_latex(index=False, escape=True, caption=_escape(caption), label=label, position="t", na_rep="")
    return text.replace("±", r"$\pm$")


def _escape(text: str) -> str:
    for character in "&%#_":
        text = text.replace(character, f"\\{character}")
    return text
