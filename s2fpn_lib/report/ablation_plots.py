"""The ablation as a chart: each variant's difference to the full network, with the seeds it was measured on."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from s2fpn_lib.report.paired import seed_differences
from s2fpn_lib.viz.style import BAD, GOOD, INK, MUTED, RULE, styled


@styled
def ablation_bars(frame: pd.DataFrame, score: str = "miou", name: str = "mIoU") -> Figure:
    """Bars of the mean paired difference to the full network, in percentage points, a dot for every common seed.

    frame: as for `paired.seed_differences`. One bar a variant (and network, where there are several), worst first.

    Raises ValueError where no variant shares a seed with the full network.
    """
    differences = seed_differences(frame, score)
    if differences.empty:
        raise ValueError("no variant shares a seed with the full network: there is no difference to draw")
    networks = [c for c in ("model", "revision") if c in differences and differences[c].nunique() > 1]
    labels = differences[["variant", *networks]].astype(str).agg(", ".join, axis=1)
    points = 100 * differences["difference"].groupby(labels.to_numpy(), sort=False).agg(list).map(np.array)
    points = points.loc[points.map(np.mean).sort_values().index]
    reach = max(1e-6, max(np.abs(values).max() for values in points))
    figure, axis = plt.subplots(figsize=(8.4, 1.1 + 0.42 * len(points)), layout="constrained")
    for y, values in enumerate(points):
        mean = values.mean()
        axis.barh(y, mean, height=0.62, color=BAD if mean < 0 else GOOD, alpha=0.55)
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [0.0]
        axis.scatter(values, y + np.array(spread), s=20, color=INK, zorder=3, linewidths=0)
        spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
        text = f"{mean:+.2f}{spread}  (n {len(values)})"
        axis.text(1.02, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8.5, color=INK)
    axis.axvline(0, color=MUTED, linewidth=1)
    axis.set_yticks(range(len(points)), points.index)
    axis.invert_yaxis()
    axis.set(xlim=(-1.1 * reach, 1.1 * reach), xlabel=f"{name}: difference to the full network, in percentage points")
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", color=RULE)
    return figure
