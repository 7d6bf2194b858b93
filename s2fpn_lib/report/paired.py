"""What a variant costs or brings, against the full network, seed by seed.

Two variants trained from one seed share initialisation and batches where they can, so their difference varies less than
either score: the table gives the mean of these differences over the seeds that both have, with their spread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from s2fpn_lib.report.tables import REPETITION, one_protocol, percent

FULL = "full"
VARYING = ("variant", "switches", "recipe_without_seed")  # what may differ between a variant and the full network


PART = ("study", "protocol", "split", "images", "device", "amp", "training_recipe")


def comparable_parts(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The rows of studies in parts that belong into one table: one study and protocol, trained and scored alike.

    The full network comes first. Of a seed that was trained twice from one recipe only the last row is kept.
    """
    if "study" not in frame:
        return
    frame = frame[frame["study"].notna()]
    keys = [c for c in (*REPETITION, "seed") if c in frame]
    frame = frame[~frame.duplicated(keys, keep="last")]
    order = [c for c in ("variant", "model", "revision", "seed") if c in frame]
    frame = frame.sort_values(order, key=lambda column: column.mask(column == FULL, ""), kind="stable")
    for _, part in frame.groupby([c for c in PART if c in frame], dropna=False, sort=False):
        yield part


def reference_variant(group: pd.DataFrame) -> str | None:
    """The variant that the others are compared with: "full", else the only one without switches, else None."""
    if (group["variant"] == FULL).any():
        return FULL
    plain = group.loc[group["switches"] == "none", "variant"].unique() if "switches" in group else []
    return plain[0] if len(plain) == 1 else None


def seed_differences(frame: pd.DataFrame, score: str = "miou") -> pd.DataFrame:
    """The frame's rows that have a partner, with `difference`: the score minus the full network's of the same seed.

    frame: evaluation rows of one protocol (ProtocolMixError) with variant and seed. Partners agree in everything of
    `REPETITION` that is there but for `VARYING`; the full network's own rows are left out.

    Raises ValueError where the full network was scored twice with one seed: which one to take would be a guess.
    """
    one_protocol(frame)
    found = []
    for _, group in frame.groupby(_shared(frame), dropna=False, sort=False):
        reference = group[group["variant"] == reference_variant(group)]
        if reference["seed"].duplicated().any():
            twice = sorted(reference.loc[reference["seed"].duplicated(), "seed"].unique().tolist())
            raise ValueError(f"the full network was scored more than once with seed {twice}: drop the repetition")
        others = group[group["variant"] != reference_variant(group)]
        partner = others["seed"].map(reference.set_index("seed")[score])
        found.append(others.assign(difference=others[score] - partner)[partner.notna()])
    return pd.concat(found) if found else frame.iloc[:0].assign(difference=pd.Series(dtype=float))


def paired_differences(frame: pd.DataFrame, scores: Sequence[str] = ("miou",)) -> pd.DataFrame:
    """One row a variant: the keys in which rows agree, runs, seeds, and for each score s

    s, s_std (mean and sample standard deviation over all its seeds), s_difference, s_difference_std (of the paired
    differences to the full network), pairs (common seeds) and s_lower (in how many of them the variant is lower).
    NaN where there is nothing to compare with, as in the full network's own row, which says so in `is_reference`.
    """
    one_protocol(frame)
    shared, varying = _shared(frame), [c for c in VARYING if c in frame]
    differences = {score: seed_differences(frame, score) for score in scores}
    rows = []
    for key, group in frame.groupby(shared, dropna=False, sort=False):
        reference = reference_variant(group)
        for sub, variant in group.groupby(varying, dropna=False, sort=False):
            seeds = variant["seed"].tolist()
            row = dict(zip([*shared, *varying], [*key, *sub], strict=True))
            row |= {"is_reference": row["variant"] == reference, "runs": len(variant), "pairs": 0}
            row["seeds"] = " ".join(map(str, seeds))
            for score in scores:
                paired = differences[score]["difference"].reindex(variant.index).dropna()
                row |= {score: variant[score].mean(), f"{score}_std": variant[score].std(), "pairs": len(paired)}
                row |= {f"{score}_difference": paired.mean(), f"{score}_difference_std": paired.std()}
                row[f"{score}_lower"] = int((paired < 0).sum())
            rows.append(row)
    return pd.DataFrame(rows)


def _shared(frame: pd.DataFrame) -> list[str]:
    return [c for c in REPETITION if c in frame and c not in VARYING]


def ablation_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The ablation to print: a line a variant with mIoU, its paired difference in points, and what the part weighs.

    frame: evaluation rows of one study and protocol, with parameters and gmacs (`results_table.with_cost`). The column
    of published numbers holds "–" throughout: the paper's ablation tables could not be recovered.
    """
    table = paired_differences(frame)
    cost = frame.drop_duplicates(["variant", "model", "revision"]).set_index(["variant", "model", "revision"])
    networks = [c for c in ("model", "revision") if table[c].nunique() > 1]
    out = table[["variant", *networks]].copy()
    if "switches" in table and (table["switches"] != out["variant"]).any():
        out["switches"] = table["switches"]
    out["n"] = table["runs"]
    out["mIoU %"] = [percent(row.miou, row.miou_std) for row in table.itertuples()]
    out["difference to full, points"] = [_difference(row) for row in table.itertuples()]
    out["seeds lower"] = [f"{r.miou_lower} of {r.pairs}" if r.pairs else "–" for r in table.itertuples()]
    keys = [tuple(row) for row in table[["variant", "model", "revision"]].to_numpy()]
    out["parameters M"] = [f"{cost.loc[key, 'parameters'] / 1e6:.3f}" for key in keys]
    out["GMACs"] = [f"{cost.loc[key, 'gmacs']:.3f}" for key in keys]
    out["published"] = "–"
    return out


def _difference(row: Any) -> str:
    """ "-1.23 ± 0.40"; "–" for the full network, and where no seed is common."""
    if row.is_reference or not row.pairs:
        return "–"
    spread = "" if pd.isna(row.miou_difference_std) else f" ± {100 * row.miou_difference_std:.2f}"
    return f"{100 * row.miou_difference:+.2f}{spread}"
