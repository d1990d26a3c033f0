"""How a study was made, as tables: its parameters, the versions and machines of its rows, and what they cost."""

import pandas as pd
import yaml

from roarlib.study.params import Study

MACHINE = ["hardware", "device", "precision", "torch", "roarlib", "commit", "python"]
WHAT = {"retrain": "retraining", "base": "base model", "ranking": "ranking", "deletion": "deletion score"}


def parameters(study: Study) -> pd.DataFrame:
    """Every parameter in the order of the YAML files: parameter, value, default, differs ("differs" or empty).

    Values as YAML spells them. A parameter without a default (name, estimators) has "–" there and never differs.
    """
    rows = []
    for key, known in Study.model_fields.items():
        value, default = getattr(study, key), known.get_default(call_default_factory=True)
        differs = not known.is_required() and value != default
        shown = "–" if known.is_required() else _yaml(default)
        rows.append((key, _yaml(value), shown, "differs" if differs else ""))
    return pd.DataFrame(rows, columns=["parameter", "value", "default", "differs"])


def _yaml(value) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("\n...")


def machines(rows: pd.DataFrame) -> pd.DataFrame:
    """What computed the rows: one row for each unlike hardware, device, precision, version and commit.

    rows: of results.known, rankings included. Columns: those, rows (how many), first, last (UTC, to the minute).
    "–": not said by the rows; results.csv alone does not know Python's version.
    """
    found = rows.reindex(columns=[*MACHINE, "finished"])
    found[MACHINE] = found[MACHINE].astype(object).where(found[MACHINE].notna() & (found[MACHINE] != ""), "–")
    groups = found.assign(finished=pd.to_datetime(found["finished"], utc=True)).groupby(MACHINE, sort=False)
    out = groups["finished"].agg(rows="size", first="min", last="max").sort_values("rows", ascending=False)
    minutes = {c: out[c].dt.strftime("%Y-%m-%d %H:%M") for c in ("first", "last")}
    return out.assign(**minutes).reset_index()


def cost(rows: pd.DataFrame) -> pd.DataFrame:
    """Number, median and total seconds by kind of measurement: measurement, n, median seconds, total seconds.

    rows: of results.known. A ranking's seconds are its share of what its base's estimators took together.
    """
    seconds = rows.groupby("measure")["seconds"].agg(["count", "median", "sum"]).reindex(list(WHAT)).dropna()
    seconds = seconds.astype({"count": int}).rename(index=WHAT)
    seconds.columns = ["n", "median seconds", "total seconds"]
    return seconds.reset_index(names="measurement")


def worker_hours(rows: pd.DataFrame) -> float:
    """Hours that went into all measurements, summed over workers; starting notebooks and loading data not counted."""
    return float(rows["seconds"].sum()) / 3600


def wall_hours(rows: pd.DataFrame) -> float:
    """Hours from the start of the first measurement to the end of the last, pauses included."""
    ends = pd.to_datetime(rows["finished"], utc=True)
    starts = ends - pd.to_timedelta(rows["seconds"].fillna(0), unit="s")
    return (ends.max() - starts.min()).total_seconds() / 3600
