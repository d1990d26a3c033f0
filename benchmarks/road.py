"""Our rows of ROAD's protocol beside the accuracies that its authors published.

python benchmarks/road.py [STUDY.yaml] [--masks]: by default params/road-cifar10-short.yaml. Theirs: CIFAR-10, mean of 5
retrainings, best epoch, read off plots to about 0.25 points (`digitised`) or printed; from the notebooks of
github.com/tleemann/road_evaluation (Rong et al., ICML 2022). Clean is 80 there. Ours: mean of the seeds there are.
--masks: how many test labels a linear classifier reads off the masks alone, where the rankings are.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from roarlib.answers import stats
from roarlib.data import datasets
from roarlib.study import params, rankings, results

MEASURES = {
    ("retrain", "remove"): ("roar", "image-mean"),
    ("retrain", "remove-imputed"): ("roar", "linear"),
    ("deletion", "remove-imputed"): ("deletion", "linear"),
}


def beside(table: pd.DataFrame) -> pd.DataFrame:
    """Estimator, fill and percent with both accuracies in percent, and ours minus theirs."""
    theirs = pd.read_csv(Path(__file__).with_name("road2022_cifar10.csv"))
    pixels = table[table.unit == "pixel"]
    ours = stats.summary(pixels[[key in MEASURES for key in zip(pixels.measure, pixels["mode"], strict=True)]])
    named = [MEASURES[key] for key in zip(ours.measure, ours["mode"], strict=True)]
    ours = ours.assign(
        metric=[metric for metric, _ in named], fill=[fill for _, fill in named], ours=100 * ours["mean"]
    )
    keys = ["metric", "fill", "estimator", "percent"]
    both = ours[[*keys, "n", "ours"]].merge(theirs.rename(columns={"accuracy": "theirs"})[[*keys, "theirs"]], on=keys)
    return both.assign(difference=both.ours - both.theirs)


def read_off_masks(study: params.Study, estimator: str, percent: int) -> float:
    """Accuracy (0..1) on the test set of a logistic regression that sees only which pixels are removed at t."""
    data, masks, labels = datasets.load(study), {}, {}
    for split in datasets.SPLITS:
        gone = rankings.removed(np.asarray(rankings.load(study, estimator, "pixel", split)), percent)
        masks[split] = torch.from_numpy(gone.reshape(len(gone), -1)).float() - percent / 100
        labels[split] = torch.from_numpy(np.array(data.split(split).labels))
    torch.manual_seed(0)
    model = torch.nn.Linear(masks["train"].shape[1], len(data.classes))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(6):
        for index in torch.randperm(len(masks["train"])).split(256):
            optimiser.zero_grad()
            F.cross_entropy(model(masks["train"][index]), labels["train"][index]).backward()
            optimiser.step()
    return float((model(masks["test"]).argmax(1) == labels["test"]).float().mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="params/road-cifar10-short.yaml")
    parser.add_argument("--masks", action="store_true")
    asked = parser.parse_args()
    study = params.load(asked.study)
    if (study.fill, study.target) != ("image-mean", "label"):
        parser.error("fill: image-mean and target: label are what they did")
    table = results.table(study)
    clean = table[(table.measure == "retrain") & (table.estimator == "clean")].accuracy
    print(f"clean: ours {100 * clean.mean():.1f} (n = {len(clean)}), theirs 80")
    found = beside(table)
    print(found.to_string(index=False, float_format="{:.1f}".format))
    for (metric, fill, percent), part in found.groupby(["metric", "fill", "percent"]):
        tau = stats.kendall(part.ours, part.theirs)["tau"]
        print(f"{metric}, {fill}, {percent}%: Kendall's tau of {len(part)}: {tau:.2f}")
    for estimator, percent in product(study.estimators if asked.masks else (), study.percents):
        print(f"{estimator}, {percent}%: labels read off masks {read_off_masks(study, estimator, percent):.1%}")


if __name__ == "__main__":
    main()
