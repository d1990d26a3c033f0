"""What a network's stem does to verdicts: the lattice on its rankings, and what three metrics say of them.

python benchmarks/stems.py STRIDED.yaml OTHER.yaml [--figure FILE]: two studies with rankings that differ in `model`;
by default params/cifar10-strided.yaml and params/cifar10-blurred.yaml. Lattice: points between places (modulo 2 or 4)
removed most and least at t = 50, the mean over base models. Metrics: accuracy minus Random's at the largest percent,
paired by base model, with 95 percent intervals, lower is better: deletion (the base model on images with holes), ROAD
(on imputed ones) and ROAR. FILE: where to save the picture, without its ending. The ratio is of the largest lattices.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from roarlib.answers import patterns, stats
from roarlib.study import params, results
from roarlib.study.names import in_order, label
from roarlib.views import plots

METRICS = {"deletion": ("deletion", "remove"), "ROAD": ("deletion", "remove-imputed"), "ROAR": ("retrain", "remove")}


def measured(study: params.Study) -> pd.DataFrame:
    """One row an estimator: lattice and metrics in points, with columns (metric, mean or low or high or n)."""
    unit, table = study.units[0], results.table(study)
    bases = [study.based(seed) for seed in study.base_seeds]
    lattices = pd.concat([patterns.lattice(base, unit).max(axis=1) for base in bases], axis=1)
    found = {
        ("lattice", key): lattices.apply(lambda row, key=key: stats.spread(row)[key], axis=1)
        for key in ("mean", "low", "high")
    }
    for metric, (measure, mode) in METRICS.items():
        rows = table[(table.measure == measure) & (table.unit == unit) & (table["mode"] == mode)]
        rows = rows[rows.percent == max(study.percents)]
        for name in set(rows.estimator) - {"random", "clean"}:
            spread = stats.spread(100 * stats.differences(rows, name, "random"))
            for key in ("mean", "low", "high", "n"):
                found.setdefault((metric, key), pd.Series(dtype=float))[name] = spread[key]
    return pd.DataFrame(found)


def draw(found: dict[str, pd.DataFrame], percent: int, file: Path) -> None:
    """Four panels, estimators down, the studies beside each other; saved as PNG, SVG and PDF."""
    names = list(reversed(in_order(set.intersection(*({*table.index} - {"random"} for table in found.values())))))
    fig, axes = plots.subplots(1, 4, size=(9.5, 0.9 + 0.3 * len(names)), sharey=True)
    colours = ["#b2182b", "#2166ac"]
    for ax, metric in zip(axes[0], ["lattice", *METRICS], strict=True):
        for (study, table), colour, shift in zip(found.items(), colours, (0.13, -0.13), strict=True):
            rows, y = table.loc[names, metric], np.arange(len(names)) + shift
            ax.hlines(y, rows.low.fillna(rows["mean"]), rows.high.fillna(rows["mean"]), color=colour, linewidth=1.3)
            ax.plot(rows["mean"], y, "o", color=colour, markersize=4, label=study.partition("-")[2])
        ax.axvline(0, color=plots.INK, linewidth=0.6, zorder=0)
        ax.set_title(metric, loc="left", fontsize=plots.TEXT + 1)
    axes[0][0].set_yticks(range(len(names)), map(label, names))
    axes[0][0].set_xlabel("share removed, most minus\nleast by position (points)")
    for ax in axes[0][1:]:
        ax.set_xlabel(f"accuracy minus Random's\n(points, t = {percent})")
    fig.legend(
        *axes[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=plots.TEXT + 1,
    )
    plots.save(fig, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=["params/cifar10-strided.yaml", "params/cifar10-blurred.yaml"])
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if len(options.studies) != 2:
        parser.error("two studies, please")
    studies = [params.load(file) for file in options.studies]
    for study in studies:
        params.agree(study)
    found = {study.name: measured(study) for study in studies}
    for name, table in found.items():
        print(f"{name}\n{table.rename(index=label).to_string(float_format='{:.1f}'.format)}\n")
    if options.figure:
        draw(found, max(studies[0].percents), options.figure)
    worst = {name: float(table.lattice["mean"].drop("random").max()) for name, table in found.items()}
    first, last = worst.values()
    print(
        json.dumps({"benchmark": "stems", "ratio": round(first / last, 2)} | {k: round(v, 1) for k, v in worst.items()})
    )


if __name__ == "__main__":
    main()
