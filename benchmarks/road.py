"""Our rows of ROAD's protocol beside the accuracies that its authors published.

python benchmarks/road.py [STUDY.yaml]: by default params/road-cifar10-short.yaml. Theirs: CIFAR-10, mean of 5
retrainings, best epoch, read off plots to about 0.25 points (`digitised`) or printed; from the notebooks of
github.com/tleemann/road_evaluation (Rong et al., ICML 2022). Clean is 80 there. Ours: mean of the seeds there are.
"""

import argparse
from pathlib import Path

import pandas as pd

from roarlib.answers import stats
from roarlib.study import params, results

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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="params/road-cifar10-short.yaml")
    study = params.load(parser.parse_args().study)
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


if __name__ == "__main__":
    main()
