r"""A study for a paper: tables, figures, methods, compute, checklist and references in LaTeX, by the templates in tex/.

Every number comes from studies and their rows. Templates write << value >>, which is escaped (`tex`) unless it is TeX
already, and %% statements; the methods have one sentence a line, so that what several studies share is said once.
"""

import re
import shlex
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from roarlib.answers import across, looks, stats, verdicts
from roarlib.grid import status
from roarlib.study.files import write_atomically
from roarlib.study.names import BASES, FIXED, KNOWN_ANSWER, MODES, UNITS, imputes, in_order, keeps, label, split_name
from roarlib.study.params import InputError, Study
from roarlib.views import methods, plots

COLUMN = 3.25  # inches, of a column of two
MANY = 8  # estimators; more crowd one pair of axes
MARKS = {verdicts.BETTER: r"$\star$", verdicts.WORSE: r"$\times$", verdicts.EQUAL: "$=$", verdicts.OPEN: r"$\circ$"}
SPECIAL = {c: rf"\{c}" for c in "&%$#{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
SPECIAL |= {"^": r"\textasciicircum{}", "_": r"\_\allowbreak{}", ":": r":\allowbreak{}", "|": "$|$", '"': "''"}
SPECIAL |= {"<": "$<$", ">": "$>$", "²": "$^2$", "−": "$-$", "×": r"$\times$", "°": r"$^\circ$", "–": "--"}
Cell = tuple[str, str]  # a number, and what follows it: half the width of its interval, and its mark


def tex(text) -> Markup:
    """Any text, escaped for LaTeX; a letter that is not Latin, for which fonts have no glyph, as its code point."""
    if isinstance(text, Markup):
        return text
    plain = "".join(c if c < "\u0180" or c in SPECIAL else ascii(c)[1:-1] for c in str(text))
    return Markup("".join(SPECIAL.get(c, c) for c in plain))


def number(value: float) -> Markup:
    """A number in its shortest form: 0.2, 5 x 10^-5."""
    digits, _, power = f"{value:g}".partition("e")
    return Markup(rf"${digits} \cdot 10^{{{int(power)}}}$" if power else digits)


def points(value: float, sign: str = "") -> Markup:
    """An accuracy or a difference (-1..1) in percent: 45.1, or with sign `+` +3.4 and -5.5; never -0.0."""
    return tex(f"{round(100 * value, 1) + 0.0:{sign}.1f}".replace("-", "−") if value == value else "–")


def over(percents: list[int]) -> Markup:
    """What a difference is of: `at $t = 90$`, or `mean over $t = 50, 90$`."""
    return Markup(f"{'mean over' if len(percents) > 1 else 'at'} $t = {', '.join(map(str, percents))}$")


def listed(words) -> str:
    """Words as a list in a sentence: `a, b and c`."""
    *others, last = words
    return " and ".join(filter(None, [", ".join(others), last]))


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("tex")),
    line_statement_prefix="%%",
    variable_start_string="<<",
    variable_end_string=">>",
    block_start_string="<%",
    block_end_string="%>",
    comment_start_string="<#",
    comment_end_string="#>",
    undefined=StrictUndefined,
    finalize=tex,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {"number": number, "points": points, "listed": listed, "over": over, "duration": status.duration}


def render(template: str, **told) -> str:
    """A file of tex/ filled in."""
    return TEMPLATES.get_template(f"{template}.j2").render(told)


def write(studies: list[Study], text_width: float = 5.5) -> str:
    """Write <first study>/paper/ and return what to tell the user. text_width: inches, of the wide figures.

    InputError where a study has no retraining yet, or is named twice.
    """
    if len({study.name for study in studies}) < len(studies):
        raise InputError("a study is named twice")
    told, folder = [methods.facts(study) for study in studies], studies[0].folder / "paper"
    tables = [accuracies(one, *side) for one in told for side in one["sides"]] + side_by_side(told)
    drawn = [figure for one in told for figure in figures(one, folder / "figures", text_width)]
    shared = {"studies": told, "tables": tables, "figures": drawn, "text_width": text_width}
    files = {f"tables/{table['name']}.tex": render("table.tex", **table) for table in tables}
    files |= {"methods.tex": in_sentences(told)}
    files |= {name: render(name, **shared) for name in ("figures.tex", "compute.tex", "checklist.tex", "main.tex")}
    files["references.bib"] = references("".join(files.values()), render("references.bib", **shared))
    for name, text in files.items():
        write_atomically(folder / name, text)
    return (
        f"{folder}: {len(tables)} table{'s' * (len(tables) > 1)}, {len(drawn)} figures, methods, compute, checklist, "
        f"{files['references.bib'].count('@')} references\nnext: cd {shlex.quote(str(folder))} && latexmk -pdf main.tex"
    )


def in_sentences(told: list[dict]) -> str:
    r"""methods.tex: all paragraphs of the first study, and of the others those that read differently there."""
    first, *others = (re.split(r"\n(?=\\paragraph)", render("methods.tex", **one).strip()) for one in told)
    parts = [r"\providecommand{\citep}{\cite}", *first]
    for one, paragraphs in zip(told[1:], others, strict=True):
        parts += [
            rf"\paragraph{{Study \emph{{{tex(one['study'].name)}}}.}}",
            "All is as above, except for what these paragraphs say.",
            *(part for part in paragraphs if part not in first),
        ]
    return "\n".join([*parts, ""])


def references(text: str, entries: str) -> str:
    r"""The BibTeX entries whose keys are in a \citep of the text; KeyError for a key without an entry."""
    known = {re.search(r"{(\w+),", entry)[1]: entry.strip() for entry in re.split(r"\n(?=@)", entries.strip())}
    cited = {key.strip() for keys in re.findall(r"\\citep{([^}]+)}", text) for key in keys.split(",")}
    return "\n\n".join(known[key] for key in sorted(cited)) + "\n"


def accuracies(one: dict, unit: str, mode: str) -> dict:
    """What table.tex shows of a study in a unit and mode: accuracy at each percent, and the difference from Random.

    The best of each column (known answers aside) is bold, with all that print the same; in mode `mask` none is.
    """
    table, judged = one["table"], mode != "mask"
    rows = table[(table.measure == "retrain") & (table.unit == unit) & (table["mode"] == mode)]
    found = stats.summary(rows)
    against = looks.judged(table, one["study"], unit, mode) if judged else pd.DataFrame()
    columns = {str(t): column(part, keeps(mode) if judged else None) for t, part in found.groupby("percent")}
    groups = [(f"{UNITS[unit]} (%)", columns)]
    groups += [("minus", {"Random": column(against, None, "+")})] if len(against) else []
    return {
        "kind": "mask" if not judged else "keep" if keeps(mode) else "remove",
        "studies": [one],
        "imputed": imputes(mode),
        "percents": verdicts.percents(table, unit, mode),
        "name": f"{one['study'].name}-{unit}-{mode}",
        "n": methods.span(found.n),
        "intervals": bool(found.high.notna().any()),
        **laid_out(groups, [against]),
    }


def side_by_side(told: list[dict]) -> list[dict]:
    """Tables of several studies, of `across.compare`: difference from Random, for each unit and mode that two have."""
    parts, tables = {one["study"].name: (one["table"], one["study"]) for one in told}, []
    for unit, mode in dict.fromkeys(side for one in told for side in one["sides"]):
        try:
            compared = across.compare(parts, unit, mode)
        except across.Incomparable:
            continue
        by_study = {name: found for name, found in compared.found.groupby("study", sort=False)}
        columns = {name: column(found, keeps(mode), "+") for name, found in by_study.items()}
        more = {
            "kind": "studies",
            "studies": [one for one in told if one["study"].name in by_study],
            "name": f"studies-{unit}-{mode}",
            "n": methods.span(compared.found.n),
            "intervals": bool(compared.found.high.notna().any()),
            "keeps": keeps(mode),
            "percents": compared.percents,
            "left_out": compared.left_out,
        }
        tables.append(laid_out([(across.said((unit, mode)), columns)], list(by_study.values())) | more)
    return tables


def column(found: pd.DataFrame, best_is_largest: bool | None, sign: str = "") -> dict[str, Cell]:
    """estimator -> its cell, of a table with estimator, mean and high, and perhaps a verdict, which gives a mark.

    What prints the same as the best mean (known answers aside) is bold; best_is_largest None: nothing is.
    """
    real = [split_name(name)[0] not in KNOWN_ANSWER for name in found.estimator]
    means = found["mean"][real]
    best = None if best_is_largest is None else points(means.max() if best_is_largest else means.min(), sign)
    cells = {}
    for row, may_win in zip(found.itertuples(), real, strict=True):
        said = points(row.mean, sign)
        half = "" if pd.isna(row.high) else rf"{{\scriptsize$\pm$\,{points(row.high - row.mean)}}}"
        mark = f"~{MARKS.get(row.verdict, '--')}" if hasattr(row, "verdict") else ""
        said = Markup(rf"\textbf{{{said}}}") if may_win and said == best else said
        cells[row.estimator] = said, Markup(half + mark)
    return cells


def laid_out(groups: list[tuple[str, dict[str, dict[str, Cell]]]], against: list[pd.DataFrame]) -> dict:
    """Groups of columns (title, head -> column) as lines, one an estimator, in order; and what their marks mean."""
    columns = [part for _, parts in groups for part in parts.values()]
    lines, last = [], None
    for name in in_order({name for part in columns for name in part}):
        base = split_name(name)[0]
        family = base if base in BASES else base in FIXED
        cells = [part.get(name, ("" if name == "random" else "–", "")) for part in columns]
        lines.append((label(name), bool(lines) and family != last, cells))
        last = family
    said: dict[str, dict[str, None]] = {}  # word -> its phrases: margins may differ
    for word, phrase, _ in (group for found in against if len(found) for group in verdicts.grouped(found)[1]):
        said.setdefault(word, {})[phrase] = None
    marks = [(Markup(MARKS.get(word, "--")), " or, by study, ".join(phrases)) for word, phrases in said.items()]
    return {"groups": groups, "lines": lines, "spaced": len(lines) > MANY, "marks": marks}


def figures(one: dict, folder: Path, text_width: float) -> list[dict]:
    """Draw a study's figures as PDF, at the size of print; returns what figures.tex shows: file, kind and so on.

    kind: curves, differences, by-base, deletion.
    """
    table, name, drawn = one["table"], one["study"].name, []

    def done(figure, kind: str, grey: bool = False):
        file = f"{name}-{kind}-{unit}-{mode}"
        plots.save(figure, folder / file, ["pdf"], None)
        plots.plt.close(figure)
        drawn.append({"one": one, "file": file, "kind": kind, "what": f"{UNITS[unit]} {MODES[mode]}", "grey": grey})
        drawn[-1]["percents"] = verdicts.percents(table, unit, mode)

    for unit, mode in (side for side in one["sides"] if side[1] != "mask"):
        shown = {"unit": unit, "mode": mode, "chance": one["floor"]}
        against = looks.judged(table, one["study"], unit, mode)
        used = plots.chosen(plots.points(table, "retrain", unit, mode))
        loud = (_loud(used, against) or None) if len(used) > MANY else None
        figure, axes = plots.subplots(size=(COLUMN, 2.5))
        plots.curves(table, axes[0, 0], highlight=loud, **shown)
        axes[0, 0].set_title("", loc="left")
        done(figure, "curves", bool(loud))
        if against.high.notna().any():
            figure, axes = plots.subplots(size=(COLUMN, 0.6 + 0.13 * len(against)))
            plots.intervals(axes[0, 0], against)
            axes[0, 0].set_xlabel("accuracy minus Random's (points)")
            done(figure, "differences")
        if len(used) > MANY:
            figure = plots.by_base(table, text_width, **shown)
            figure.suptitle("")
            done(figure, "by-base")
        scored = table[(table.measure == "deletion") & (table.unit == unit) & (table["mode"] == mode)].estimator
        if set(used) <= set(scored):
            figure = plots.roar_and_deletion(table, highlight=loud, size=(text_width, 2.6), **shown)
            for ax, title in zip(
                figure.axes, ("not retrained", f"retrained ({'KAR' if keeps(mode) else 'ROAR'})"), strict=True
            ):
                ax.set_title(title, loc="left", fontsize=plots.TEXT, color=plots.INK)
            done(figure, "deletion", bool(loud))
    return drawn


def _loud(used: list[str], against: pd.DataFrame) -> list[str]:
    """Of many estimators, those to highlight in one figure: users' own, the three best, the worst."""
    return [name for name in used if ":" in name or name in {*against.estimator[:3], *against.estimator[-1:]}]
