"""Comparisons: networks by their predictions of the same images, a study's variants with the full network, as paired
differences over the common seeds, and what was measured here with published numbers."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import SegmentationDataset, get_protocol
from s2fpn_lib.data.protocols import dataset_of
from s2fpn_lib.report import tables
from s2fpn_lib.report.collect import METHOD, PLACE, latest_speed, with_remarks
from s2fpn_lib.runs import atomic_file
from s2fpn_lib.viz.images import as_array, colorize, image_grid, predicted
from s2fpn_lib.viz.style import BAD, GOOD, INK, MUTED, styled

SAMPLES = "samples.npz"
MOST_BYTES = 2_000_000_000  # of the arrays in samples.npz, whatever the size of the file
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error)
SHOWN = 3  # images per comparison
FULL = "full"
VARYING = ("variant", "switches", "recipe_without_seed")  # may differ between a variant and the full network
PART = ["study", "protocol", "split", "data", "images", "device", "amp", "training_recipe"]
PUBLISHED = Path(__file__).with_name("published.csv")
POINT = ["dataset", "protocol", "model", "revision", "split", "miou_percent", "fps", "device", "input", "method"]


class Sample(NamedTuple):
    """One scored image: (3, H, W) uint8, label and prediction (H, W) uint8, and the protocol's name."""

    image: Tensor
    label: Tensor
    prediction: Tensor
    protocol: str


def save_samples(
    folder: str | Path, model: nn.Module, dataset: SegmentationDataset, indices: Sequence[int], **views: Any
) -> None:
    """Predicts the chosen samples as `evaluate` does (views: see `predict_logits`) and writes them to samples.npz."""
    arrays: dict[str, Any] = {"protocol": np.array(dataset.protocol.name)}
    for index in indices:
        name = dataset.names[index]
        image, label = dataset[index]
        prediction = predicted(model, image, dataset.protocol.size, **views)
        arrays |= {f"image:{name}": image, f"label:{name}": label, f"prediction:{name}": prediction}
    with atomic_file(Path(folder) / SAMPLES) as file:
        np.savez_compressed(file, **arrays)


def load_samples(folder: str | Path, skipped: dict[str, str] | None = None) -> dict[str, Sample]:
    """{sample id: sample} of the samples.npz in `folder`, if any; ValueError, or an entry in `skipped`, if damaged."""
    path = Path(folder) / SAMPLES
    if not path.exists():
        return {}
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        if not path.is_file() or sum(each.file_size for each in zipfile.ZipFile(path).infolist()) > MOST_BYTES:
            raise ValueError(f"it is not a regular file, or holds more than {MOST_BYTES} bytes")
        with np.load(path, allow_pickle=False) as stored:
            protocol = get_protocol(str(stored["protocol"])).name
            for key in sorted({*stored.files} - {"protocol"}, key=stored.files.index):
                part, name = key.split(":", 1)
                parts.setdefault(name, {})[part] = torch.from_numpy(stored[key])
        samples = {name: Sample(**each, protocol=protocol) for name, each in parts.items()}
        for image, label, prediction, _ in samples.values():
            if torch.cat([image, label[None], prediction[None]]).dtype != torch.uint8 or len(image) != 3:
                raise ValueError("an image, label, or prediction holds no bytes")
    except (EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError, *_ZIP_ERRORS) as error:
        if skipped is None:
            raise ValueError(f"{path} is damaged ({error}): delete it, or evaluate again") from error
        skipped[str(path)] = str(error)
        return {}
    return samples


def compare_evaluations(
    names: Mapping[str, str], root: str | Path, skipped: dict[str, str] | None = None
) -> Figure | None:
    """Image | label | one prediction per network, for the first `SHOWN` images that all evaluations with samples kept.

    names: {name: folder of the evaluation under `root`}. Returns None if fewer than two evaluations have an image in
    common. Raises ValueError for several protocols. skipped: as in `load_samples`.
    """
    kept = {name: samples for name, folder in names.items() if (samples := load_samples(Path(root) / folder, skipped))}
    protocols = sorted({sample.protocol for samples in kept.values() for sample in samples.values()})
    if len(protocols) > 1:
        raise ValueError(f"refusing to compare pictures of {len(protocols)} protocols: {', '.join(protocols)}")
    first, *others = kept.values() or [{}]
    shared = [name for name in first if all(name in other for other in others)][:SHOWN]
    if not others or not shared:
        return None
    protocol = get_protocol(protocols[0])
    rows = []
    for name in shared:
        predictions = [colorize(samples[name].prediction, protocol) for samples in kept.values()]
        rows.append([as_array(first[name].image), colorize(first[name].label, protocol), *predictions])
    return image_grid(rows, ["image", "label", *kept], shared, protocol, width=11.0)


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


def load_published() -> pd.DataFrame:
    """The rows of published.csv. Empty cells are unknown (NaN, or "" in `revision`), never zero."""
    return pd.read_csv(PUBLISHED).fillna({"revision": ""})


def measured_points(evaluations: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and speed measured here: one row per network and device, columns `POINT`; empty if nothing has both.

    - Speed rows that carry the mIoU of the timed callable (`speed_accuracy`), as they are.
    - Evaluations of whole splits in one view (mean over seeds of one recipe), with the fastest of the latest float32
      speed rows, stage "network", one image of the protocol's size, on each device: of the same checkpoint, or for
      networks without switches of the same network. Speed rows with a remark make no point.
    """
    columns = [*PLACE, *METHOD, "fps", "miou", "protocol", "split", "images", "images_seen", "checkpoint_sha"]
    speed = with_remarks(latest_speed(speed))
    speed = speed[speed["remark"] == ""].reindex(columns=columns)  # rows may lack any
    speed = speed.astype(dict.fromkeys(("stage", "checkpoint_sha", *METHOD), "string"))
    speed = speed.rename(columns={"network": "model"})
    speed["input"] = pd.array([f"{h:g}x{w:g}" for h, w in speed[["height", "width"]].to_numpy()], dtype="string")
    trained = pd.array(tables.seen_words(speed, ", trained on {} images"), dtype="string")
    speed["method"] = speed["backend"] + " " + speed["precision"] + ", " + speed["stage"] + trained
    speed["miou_percent"] = 100 * speed["miou"]
    points = [speed.dropna(subset="miou")]
    if {"model", "revision"} <= set(evaluations):
        points.append(_joined(evaluations, speed))
    points = pd.concat(points, ignore_index=True).reindex(columns=POINT)
    points["model"] = points["model"].map(tables.network_name)
    points["dataset"] = list(map(dataset_of, points["protocol"]))
    return points


def _joined(evaluations: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """Mean mIoU of evaluations of whole splits, merged with the fastest plain speed row on each device."""
    whole = evaluations[evaluations["images"] == evaluations["images_in_split"]]
    for column, value in {"scales": "1", "flip": False, "window": "whole image"}.items():
        whole = whole[whole[column] == value] if column in whole else whole
    varying = [c for c in ("switches", "study", "training_recipe") if c in whole]
    keys = ["protocol", "split", "model", "revision", *varying]
    whole = whole.reindex(columns=whole.columns.union(["images_seen", "checkpoint_sha"]))
    columns = {"miou_percent": ("miou", "mean"), "images": ("images", "first")}
    columns |= {"images_seen": ("images_seen", "max"), "checkpoint_sha": ("checkpoint_sha", "last")}
    scored = whole.groupby(keys, dropna=False).agg(**columns).reset_index().astype({"checkpoint_sha": "string"})
    scored["miou_percent"] *= 100
    scored["input"] = scored["protocol"].map(lambda name: "{}x{}".format(*get_protocol(name).size)).astype("string")
    timed = speed[(speed["stage"] == "network") & (speed["batch"] == 1) & (speed["precision"] == "float32")]
    timed = timed.sort_values(["device", "fps"], ascending=[True, False])
    plain = scored[scored["switches"] == "none"] if "switches" in scored else scored
    architectures = timed[timed["checkpoint_sha"].isna()]
    by_checkpoint, by_network = ["checkpoint_sha", "input"], ["model", "revision", "input"]
    found = [
        rows.dropna(subset=same).merge(times.drop_duplicates([*same, "device"])[[*same, "device", "fps", "method"]])
        for rows, times, same in ((scored, timed, by_checkpoint), (plain, architectures, by_network))
    ]
    points = pd.concat(found).drop_duplicates([*keys, "device"], ignore_index=True)  # the checkpoint's own time first
    points["method"] += pd.array(tables.seen_words(points, ", trained on {} images"), dtype="string")
    if "study" in points:
        points["method"] += (", study " + points["study"].astype("string")).fillna("")
    return points
