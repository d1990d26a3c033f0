"""Results as rows: one JSON file per measurement, written last and atomically, collected into one tidy table."""

import json
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from roarlib.study import brought, machine, own
from roarlib.study.files import digest, has_results, write_atomically
from roarlib.study.names import CURVES, MAPS, RESTS, group_of, is_estimator, reads_network, safe, split_name
from roarlib.study.params import MACHINE, OTHER, SELECTION, InputError, Study, agree, save

STAGES = {"base": "01-train", "ranking": "02-attribute", "deletion": "03-degrade", "retrain": "04-retrain"}
STAGES |= {"sanity": "05-randomise"}  # where a study asks for it
COLUMNS = (
    "study cell measure estimator unit mode percent seed accuracy n_train n_test n_classes epochs seconds device "
    "hardware precision torch roarlib commit finished constant base_seed source balanced floor gap data overlap rho "
    "network"
).split()
NUMBERS = (
    "percent seed accuracy n_train n_test n_classes epochs seconds constant base_seed balanced floor gap overlap rho"
).split()
TEXT = {name: str for name in COLUMNS if name not in NUMBERS}  # a commit of digits alone is not a number


class Key(NamedTuple):
    """What identifies a row and makes up the name of its file.

    measure: one of STAGES; a ranking has no accuracy, its row only says that it is done. mode: one of names.MODES, or
    for a sanity row of names.DEPTHS. percent: t. seed: the retraining's, or the study's base seed.
    """

    measure: str
    estimator: str = "clean"
    unit: str = "all"
    mode: str = "all"
    percent: int = 0
    seed: int = 0

    @property
    def cell(self) -> str:
        """The folder of its cell within the study's: stage, then the estimator or group that is measured together."""
        together = group_of if self.measure in ("ranking", "deletion", "sanity") else safe
        return f"{STAGES[self.measure]}/{'base' if self.measure == 'base' else together(self.estimator)}"

    @property
    def file(self) -> str:
        """The name of its row's file."""
        return f"{self.measure}_{safe(self.estimator)}_{self.unit}_{self.mode}_p{self.percent}_s{self.seed}.json"


KEY, CLEAN = list(Key._fields), ("retrain", "clean")  # clean rows, by measure and estimator, rest on no base model


def base_file(study: Study, name: str) -> Path:
    """The path of a file of the base model: `model.safetensors`, `predictions-train.npy`, `predictions-test.npy`."""
    stem, _, kind = name.rpartition(".")
    return study.folder / Key("base").cell / f"{stem}{study.of_base}.{kind}"


def network(study: Study) -> str | None:
    """A digest of the base model's weights; None where they are not here."""
    file = base_file(study, "model.safetensors")
    return digest(file) if file.is_file() else None


def row_file(study: Study, key: Key) -> Path:
    """The path of a measurement's row."""
    return study.folder / key.cell / "rows" / key.file


def has(study: Study, key: Key) -> bool:
    """Whether a measurement is done: its row exists as a file or in a published results.csv."""
    return row_file(study, key).is_file() or key in published(study)


def published(study: Study) -> frozenset[Key]:
    """The measurements in results.csv: in a clone they count as done, so that the study can be continued."""
    file = study.folder / "results.csv"
    return _keys(study.model_dump_json(), file, file.stat().st_mtime_ns) if file.is_file() else frozenset()


@lru_cache(maxsize=8)
def _keys(study: str, file: Path, changed: int) -> frozenset[Key]:
    current = _earlier(Study.model_validate_json(study), file)[0]
    return frozenset(Key(*values) for values in current[KEY].itertuples(index=False, name=None))


def _earlier(study: Study, file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a study's results.csv by the current version of the user's function, model and files; the others.

    Both are empty without the file. InputError if they are not such rows, since anybody may have edited them.
    """
    if not file.is_file():
        return (pd.DataFrame(columns=COLUMNS),) * 2
    try:
        table = pd.read_csv(file, dtype=TEXT)
    except ValueError as error:  # pandas' own are ValueErrors
        raise InputError(f"{file} cannot be read as CSV in UTF-8: {' '.join(str(error).split())[:90]}") from None
    if lack := [name for name in ("study", *KEY, "accuracy") if name not in table]:
        raise InputError(f"{file} has no column {lack[0]}: see outputs/README.md")
    table = table.reindex(columns=COLUMNS)  # earlier versions had fewer columns
    accuracy, measured = pd.to_numeric(table.accuracy, "coerce"), ~table.measure.isin(["ranking", "sanity"])
    whole = table[["percent", "seed"]].apply(pd.to_numeric, errors="coerce")
    known = {name: name == "clean" or is_estimator(name) for name in table.estimator.unique()}
    one = (study.base_models == "one") & ~((table.measure == CLEAN[0]) & (table.estimator == CLEAN[1]))
    again = table.assign(accuracy=accuracy).drop_duplicates([*KEY, "accuracy"]).duplicated(KEY)
    for wrong, what in (
        (table["study"] != study.name, f"of another study than {study.name}"),
        (~table.estimator.map(known).astype(bool), "of an estimator that nobody knows"),
        ((whole % 1 != 0).any(axis=1), "whose percent or seed is no whole number"),
        (~accuracy.between(0, 1) & (table.accuracy.notna() | measured), "whose accuracy is no number from 0 to 1"),
        (table.epochs.notna() & (table.epochs != study.epochs), f"of other epochs than {study.epochs}"),
        (one & ~table.base_seed.isin([study.base_seed, np.nan]), f"of another base_seed than {study.base_seed}"),
        (again.reindex(table.index, fill_value=False), "that stands there twice, with two accuracies"),
    ):
        if wrong.any():
            raise InputError(f"{file}, line {wrong.argmax() + 2}, is a row {what}: take it out")
    table = table.astype({"percent": int, "seed": int}).assign(accuracy=accuracy)
    made = list(zip(table.estimator, table.source.astype(object).where(table.source.notna(), None), strict=True))
    fits = {kind: own.is_source(study, *kind) for kind in set(made)}
    now = np.array([fits[kind] for kind in made], dtype=bool)
    return table[now], table[~now]


def write(study: Study, key: Key, accuracy: float | None = None, **more) -> dict:
    """Write one row, atomically; its presence means that the measurement is done. Returns the row.

    accuracy: 0..1, or None for a ranking. more: n_train, n_test, seconds and other JSON values.
    """
    if key.measure not in STAGES or accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError(f"no such row: {key}, accuracy {accuracy}")
    row = {"study": study.name, "cell": key.cell, **key._asdict(), "accuracy": accuracy, **more}
    row |= {"epochs": study.epochs, "base_seed": study.base_seed, "source": own.source(study, key.estimator)}
    row |= machine.provenance() | {"network": None if key[:2] == CLEAN else network(study)}
    _rests_on_its_ranking(study, key, row)
    row |= {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "params": study.model_dump()}
    if not agree(study).is_file() or not has_results(study.folder):
        save(study)  # a notebook run by hand: from now on the folder is this study's
    write_atomically(row_file(study, key), json.dumps(row, indent=1))
    return row


def _rests_on_its_ranking(study: Study, key: Key, row: dict) -> None:
    """InputError if the user's function, maps or the network have changed since the ranking of a row."""
    if key.estimator == "clean" or key.measure == "ranking":
        return
    file = row_file(study, ranked := Key("ranking", key.estimator, key.unit, seed=study.base_seed))
    then = json.loads(file.read_text()) if file.is_file() else {}
    rests = {"source": "its function, maps or options"}
    if reads_network(key.estimator):
        rests["network"] = "the network that it explains"
    for name, what in rests.items():
        if None not in (then.get(name), row[name]) and then[name] != row[name]:
            raise InputError(
                f"{key.estimator}: {what} changed after its ranking was made ({then[name]} then, {row[name]} "
                f"now): undo that, or delete {study.folder / ranked.cell} to rank anew"
            )


def context(study: Study, data) -> dict:
    """What a row says about data and device: sizes, classes, the largest class's share, digest, device, precision."""
    device = machine.device_of(study)
    return {
        "n_train": len(data.train),
        "n_test": len(data.test),
        "n_classes": len(data.classes),
        "floor": max(np.bincount(data.test.labels)) / len(data.test),
        "data": data.digest,
        "device": str(device),
        "hardware": machine.hardware(str(device)),
        "precision": machine.precision_of(study.precision, device),
    }


def rows(study: Study) -> pd.DataFrame:
    """Every row of the study's row files, rankings included, in a fixed order.

    InputError for a row that was made with other parameters, as on another machine.
    """
    found, now = [], study.model_dump(exclude={*SELECTION, *MACHINE, *OTHER})
    for file in study.folder.glob("*/*/rows/*.json"):
        try:
            found.append(json.loads(file.read_text()))
        except ValueError:
            raise InputError(f"{file} is damaged (not JSON); delete it and run the study again") from None
        row = found[-1]
        if (name := row.get("study", study.name)) != study.name:
            raise InputError(f"{file} is a row of the study {name}: give the folder and the YAML that name again")
        ends = row.get("estimator", ""), row.get("mode", "")
        wanted = now | {key: getattr(study, key) for key, word in RESTS.items() if any(e.endswith(word) for e in ends)}
        free = study.base_models != "one" or (row.get("measure"), row.get("estimator")) == CLEAN
        then = wanted | row.get("params", {}) | ({"base_seed": study.base_seed} if free else {})
        if odd := [f"{key}: {then[key]} there, {value} now" for key, value in wanted.items() if then[key] != value]:
            raise InputError(f"{file} was made with other parameters ({'; '.join(odd)}): delete such rows")
    table = pd.DataFrame(found, columns=list(dict.fromkeys([*COLUMNS, *(k for row in found for k in row)])))
    return table.drop(columns="params", errors="ignore").sort_values(KEY, ignore_index=True)


def nothing_learnt(study: Study) -> str:
    """A warning if a base model is no better than guessing, so that removal costs nothing; else ''."""
    found = known(study)
    bases = found[(found.measure == "base") & found.seed.isin(study.base_seeds)]
    for accuracy, floor in zip(bases.accuracy, bases.floor, strict=True):
        if floor >= accuracy:  # never in rows of an earlier version, which have no floor
            return (
                f"the base model is right on {accuracy:.1%} of the test images, guessing on {floor:.1%}: "
                "nothing can be lost by removal. Fix the recipe (epochs, batch_size, learning_rate, model) and "
                f"delete {study.folder}, or go on with `roar run --anyway`"
            )
    return ""


def check_sources(study: Study) -> None:
    """InputError if rows here were made with another version of a user's function, model or files than there is now."""
    for name, made in rows(study).groupby("estimator").source.unique().items():
        if all(own.is_source(study, name, source) for source in made):
            continue
        function, what, why = study.model, "the study's folder", "its module, one it imports, or its options changed"
        if study.base_weights and brought.digest(study, "clean") not in " ".join(map(str, made)):
            function, why = study.base_weights, "the weights are others"
        elif name != "clean":
            function = split_name(name)[0]
            what = f"its cells, 0?-*/{safe(function)} and 0?-*/{safe(function)}-*"
            why = "the maps are others" if MAPS.fullmatch(function) else why
        then, now = ", ".join(map(str, made)), own.source(study, name)
        raise InputError(
            f"{function} is not what it was when its results were made: {why} ({then} then, {now} now), and "
            f"{study.folder} would mix both. Undo the edit (new functions go into a file of their own), give it or the "
            f"study another name, or delete {what}"
        )


def known(study: Study) -> pd.DataFrame:
    """Every row, rankings included: from the row files, and from results.csv what they lack. See COLUMNS.

    A clone has only the published table; where both have a row, the file wins. Rows there that another version of the
    user's function made are left out (`outdated`). InputError where rows do not belong together.
    """
    found, earlier = rows(study), _earlier(study, study.folder / "results.csv")[0]
    if len(earlier):
        found = pd.concat([found, earlier], ignore_index=True) if len(found) else earlier
        found = found.drop_duplicates(KEY).sort_values(KEY, ignore_index=True)
    _belong_together(study, found[found.measure != "sanity"])
    return found


def _belong_together(study: Study, found: pd.DataFrame) -> None:
    """InputError for accuracies on two data sets, or of two versions of a user's function, as of two machines."""
    for name in ("data", "n_train", "n_test", "n_classes"):
        if len(values := set(found[name].dropna()) - {""}) > 1:
            said = ", ".join(map(str, sorted(values)))
            raise InputError(f"{study.folder} mixes results of several data sets ({name}: {said}): delete all but one")
    for name, made in found.groupby("estimator").source:
        if made.nunique() > 1:
            said = ", ".join(sorted(made.dropna().unique()))
            raise InputError(f"{study.folder} mixes several versions behind {name} ({said}): delete all but one")


def outdated(study: Study) -> pd.DataFrame:
    """The rows of results.csv by another version of a user's function, of estimators that `known` has no rows of."""
    old = _earlier(study, study.folder / "results.csv")[1]
    return old[~old.estimator.isin(known(study).estimator)]


def listed(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The rows that count: of accuracies, those at the study's estimators, percents and (of retrainings) seeds.

    If all did, an earlier sweep would decide which percents and seeds most estimators have, and so every verdict.
    """
    seeds = range(study.seeds_max) if study.seeds == "auto" else study.seeds
    here = table.estimator.isin(["clean", *study.estimators]) & table.percent.isin([0, *study.percents])
    return table[here & (table.seed.isin(seeds) | (table.measure != "retrain")) | ~table.measure.isin(CURVES)]


def table(study: Study) -> pd.DataFrame:
    """The tidy table of accuracies: `known` without rankings and sanity checks, as far as `listed`."""
    found = listed(known(study), study)
    return found[~found.measure.isin(["ranking", "sanity"])].reset_index(drop=True)


def collect(study: Study) -> Path:
    """Write results.csv and .parquet, the same table with types; returns the CSV's path. InputError without any row.

    Rows of another version of a function stay there until the current one has rows.
    """
    found, old = known(study), outdated(study)
    found = pd.concat([found, old], ignore_index=True).sort_values(KEY, ignore_index=True) if len(old) else found
    if found.empty:
        raise InputError(f"no results under {study.folder} yet; `roar run` with the study's YAML makes them")
    found = found[COLUMNS].astype({n: float for n in NUMBERS if found[n].isna().any()} | TEXT)  # None is no number
    file = study.folder / "results.csv"
    write_atomically(file.with_suffix(".parquet"), found.to_parquet(index=False))
    write_atomically(file, found.to_csv(index=False))
    return file
