"""How analyses show things: parts that appear only with their results, figures with captions, tables in words."""

from pathlib import Path
from textwrap import dedent

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from roarlib.views import plots

LONG = 15  # rows; a longer table is folded
WORDS = {
    "n": "seeds",
    "std": "spread",
    "low": "from",
    "high": "to",
    "effect": "effect (Hedges' g)",
    "p_holm": "p, differs",
    "p_equal_holm": "p, equal",
    "w": "Kendall's W",
    "rho": "Spearman's ρ",
    "tau": "Kendall's τ",
    "tau_low": "τ from",
    "tau_high": "τ to",
}


def part(there, prose: str) -> bool:
    """Show the prose (Markdown) of a part of a page if what it is about is `there`; returns whether it is."""
    if there:
        display(Markdown(dedent(prose).strip()))
    return bool(there)


def figure(drawn: Figure, path: Path | None, caption: str) -> None:
    """Save a figure (`plots.save`; path None: do not) and show it once, above its caption."""
    if path:
        plots.save(drawn, path)
    display(drawn, metadata={"caption": caption})
    display(Markdown(f"*{caption}*"), metadata={"caption": caption})
    plt.close(drawn)


def table(frame: pd.DataFrame, digits: int = 1, **words: str) -> None:
    """Show a table without its index, its columns named by WORDS or `words`.

    Numbers have `digits` decimals, p values three. A long table is folded; an empty one is not shown.
    """
    if frame.empty:
        return
    small = {c: frame[c].map(_p) for c in ("p", "p_holm", "p_equal_holm") if c in frame}
    named = frame.assign(**small).rename(columns=WORDS | words)
    body = named.style.format(precision=digits, na_rep="–", thousands=",").hide(axis="index").to_html()
    folded = f"<details><summary>Table of {len(frame)} rows</summary>{body}</details>"
    display(HTML(folded if len(frame) > LONG else body))


def _p(value: float) -> str:
    return "–" if pd.isna(value) else "<0.001" if value < 0.001 else f"{value:.3f}"
