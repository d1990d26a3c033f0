"""Random, drawn several times: `random2` .. `random9` in a study's list are further draws of it.

Every difference from Random has Random's own chance in it, a third to a half of its variance: which inputs are drawn,
and how its retraining turns out. Each further draw is ranked and retrained like an estimator, and Random is then the
mean of them, seed by seed; differences stay paired by seed.
"""

import pandas as pd

from roarlib.study.names import CURVES, RANDOM


def averaged(table: pd.DataFrame) -> pd.DataFrame:
    """A table of rows (`results.known`) in which Random's accuracies are the means of its draws, their seconds the sum.

    Of each measure, unit, mode, percent, seed and precision, over the draws that are there; their own rows are gone.
    """
    drawn = table.measure.isin(CURVES) & table.estimator.isin(RANDOM)
    if not (drawn & (table.estimator != "random")).any():
        return table
    key = [name for name in ("measure", "unit", "mode", "percent", "seed", "precision") if name in table]
    by_point = table[drawn].groupby(key, dropna=False)
    joined = {name: by_point[name].transform("mean") for name in ("accuracy", "balanced") if name in table}
    joined |= {"seconds": by_point.seconds.transform("sum")} if "seconds" in table else {}
    found = table.assign(**{name: values.reindex(table.index).fillna(table[name]) for name, values in joined.items()})
    return found[~(drawn & (found.estimator != "random"))].reset_index(drop=True)
