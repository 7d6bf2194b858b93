"""Studies: what each variant costs or gains against the full network, as paired differences over the common seeds."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from s2fpn_lib.config import TrainConfig
from s2fpn_lib.report import tables
from s2fpn_lib.viz.style import BAD, GOOD, INK, MUTED, styled

FULL = "full"
VARYING = ("variant", "switches", "recipe_without_seed")  # may differ between a variant and the full network
PART = ["study", "protocol", "split", "data", "images", "device", "amp", "training_recipe"]


def recorded_study(folder: Path) -> pd.DataFrame:
    """The rows for `comparable_parts` of a committed study: runs.csv of the folder that has the study's name."""
    table = pd.read_csv(folder / "runs.csv")
    rows = table.filter(like="evaluation.").rename(columns=lambda name: name.removeprefix("evaluation."))
    scores = {name: rows.pop(f"{name}_percent") / 100 for name in tables.SCORES}
    known = {"study": folder.name, "variant": table["variant"], "protocol": table["training.protocol"]}
    known |= {name: table[f"config.{name}"] for name in ("model", "seed")} | {"revision": TrainConfig().revision}
    return rows.assign(**known, **scores, recipe_without_seed=table["training.config_hash_without_seed"])


def comparable_parts(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{title: rows} of one study and protocol, trained and scored alike; the full network comes first."""
    if "study" not in frame:
        return {}
    frame = frame[frame["study"].notna()]
    frame = frame.drop_duplicates([c for c in (*tables.REPETITION, "seed") if c in frame], keep="last")
    order = [c for c in ("variant", "model", "revision", "seed") if c in frame]
    frame = frame.sort_values(order, key=lambda column: column.mask(column == FULL, ""), kind="stable")
    parts = [rows for _, rows in frame.groupby([c for c in PART if c in frame], dropna=False, sort=False)]
    titles, titled = [_title(rows.iloc[0]) for rows in parts], {}
    for title, rows in zip(titles, parts, strict=True):
        details = rows.iloc[0].reindex(["training_recipe", "device", "amp"]).dropna() if titles.count(title) > 1 else []
        titled[", ".join([title, *details])] = rows
    return titled


def _title(row: pd.Series) -> str:
    """ "ablation: RoadScenes, val", and how many images if only a part of the split was scored."""
    whole = row.get("images_in_split", row["images"])
    images = f", only {row['images']} of {whole} images" if row["images"] < whole else ""
    return f"{row['study']}: {tables.protocol_name(row['protocol'])}, {row['split']}{images}"


def reference_variant(rows: pd.DataFrame) -> str | None:
    """The variant that the others are compared with: "full", else the only one without switches, else None."""
    if (rows["variant"] == FULL).any():
        return FULL
    plain = rows.loc[rows["switches"] == "none", "variant"].unique() if "switches" in rows else []
    return plain[0] if len(plain) == 1 else None


def with_differences(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with `difference`: the mIoU minus that of the full network with the same seed.

    Partners agree in everything of `REPETITION` except `VARYING`. The difference is NaN for the full network and where
    it lacks the seed. Raises ValueError for several protocols, and if it was scored twice with one seed.
    """
    tables.one_protocol(frame)
    found, keys = [], [c for c in tables.REPETITION if c in frame and c not in VARYING]
    for _, rows in frame.groupby(keys, dropna=False, sort=False):
        is_reference = rows["variant"] == reference_variant(rows)
        reference = rows[is_reference].set_index("seed")["miou"]
        if twice := sorted(reference.index[reference.index.duplicated()].unique()):
            raise ValueError(f"the full network was scored more than once with seed {twice}: drop the repetition")
        partner = rows["seed"].map(reference).where(~is_reference)
        found.append(rows.assign(difference=rows["miou"] - partner))
    return pd.concat(found)


def paired_differences(frame: pd.DataFrame) -> pd.DataFrame:
    """`over_seeds` of `miou` and `difference`, `pairs` (seeds that the full network also has), `lower` (of them)."""
    rows = with_differences(frame)
    table = tables.over_seeds(rows, ["miou", "difference"])
    keys = [c for c in table if c in (*tables.REPETITION, "checkpoint_sha")]
    groups = rows.assign(lower=rows["difference"] < 0).groupby(keys, dropna=False, sort=False)
    return table.assign(pairs=groups["difference"].count().to_numpy(), lower=groups["lower"].sum().to_numpy())


def ablation_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One part of `comparable_parts` to print: per variant its mIoU, its paired difference in points, and its cost."""
    table = tables.named(paired_differences(frame))
    networks = [c for c in ("model", "revision") if table[c].nunique() > 1]
    out = table[["variant", *networks]].copy()
    if "switches" in table and (table["switches"] != out["variant"]).any():
        out["switches"] = table["switches"]
    out["runs"] = table["runs"]
    out["mean IoU %"] = list(map(tables.percent, table["miou"], table["miou_std"]))
    if table["pairs"].any():
        lines = list(table.itertuples())
        texts = [tables.percent(x.difference, x.difference_std, sign="+") or "–" for x in lines]
        out["difference to the full network, points"] = texts
        out["seeds lower"] = [f"{x.lower} of {x.pairs}" if x.pairs else "–" for x in lines]
    return out.join(tables.words(table[["parameters", "gmacs"]]))


@styled
def ablation_bars(frame: pd.DataFrame) -> Figure:
    """Bars of the mean paired difference in percentage points, worst first, a dot per seed; ValueError for none."""
    rows = with_differences(frame).dropna(subset="difference")
    if rows.empty:
        raise ValueError("no variant shares a seed with the full network: there is no difference to draw")
    groups = dict(list(rows["difference"].groupby(pd.Series(tables.short_names(rows), rows.index), sort=False)))
    means = pd.Series({name: values.mean() for name, values in groups.items()}).sort_values()
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.5 * len(means)), layout="constrained")
    axis.barh(means.index, 100 * means, height=0.62, color=np.where(means < 0, BAD, GOOD), alpha=0.55)
    for y, name in enumerate(means.index):
        values = groups[name]
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else 0
        axis.scatter(100 * values, y + spread, s=28, color=INK, zorder=3, linewidths=0)
        text = f"{tables.percent(values.mean(), values.std(), sign='+')}  (n {len(values)})"
        axis.text(1.02, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=10, color=INK)
    axis.axvline(0, color=MUTED, linewidth=1)
    axis.invert_yaxis()
    reach = max(1e-6, 110 * rows["difference"].abs().max())
    axis.set(xlim=(-reach, reach), xlabel="mean IoU: difference to the full network, in points")
    axis.grid(axis="y", visible=False)
    return figure
