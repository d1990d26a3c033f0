"""Estimators' names: a base, an ensemble around it, a variant of either; `ig-sg-squared-blur` has all three."""

import difflib
import re

BASES = ("grad", "gb", "ig")
ENSEMBLES = ("squared", "sg", "sg-squared", "sgsq", "var")
CONTROLS = ("random", "sobel")
KNOWN_ANSWER = ("oracle", "anti-oracle")  # on data that carries the mask of its informative pixels
VARIANTS = ("blur", "max", "abs", "reversed", "recursive")  # of any estimator: attribute.VARIANTS, and recursive
PAPER = tuple(f"{b}-{e}" if e else b for b in BASES for e in ("", *ENSEMBLES)) + CONTROLS

REGISTERED: set[str] = set()  # by attribute.register, in this process
USERS_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:function


def expand(names: list[str]) -> list[str]:
    """Estimators as a study lists them, in full and once each: `paper`, and `*-blur` for a variant of all before it.

    Variants are not taken of variants, and only the smoothing ones of Random. ValueError for a name that is none.
    """
    found = []
    for name in names:
        if name == "paper":
            found += PAPER
        elif name.startswith("*-") and name[2:] in VARIANTS:
            smooth = name[2:] in ("blur", "max")
            found += [n + name[1:] for n in found if not variant_of(n) and (smooth or n != "random")]
        else:
            split_name(name)
            found.append(name)
    return list(dict.fromkeys(found))


def variant_of(name: str) -> str:
    """'grad-sgsq-blur' -> 'blur'; empty for an estimator that is no variant of another."""
    return next((v for v in VARIANTS if name.endswith(f"-{v}")), "")


def parent_of(name: str) -> str:
    """What an estimator is made from: 'grad-sg-blur' -> 'grad-sg' -> 'grad' -> ''."""
    if variant := variant_of(name):
        return name.removesuffix(f"-{variant}")
    base, ensemble = split_name(name)
    return base if ensemble else ""


def split_name(name: str) -> tuple[str, str]:
    """An estimator's name as (base, ensemble): 'ig-sg-squared' -> ('ig', 'sg-squared'), 'grad-blur' -> ('grad', '').

    Raises ValueError for a name that is no estimator.
    """
    variant = variant_of(name)
    base = name.removesuffix(f"-{variant}")
    if base in CONTROLS + KNOWN_ANSWER:
        if base == "random" and variant in ("abs", "reversed", "recursive"):
            raise ValueError(f"estimator '{name}' is Random again; only its blur and max variants are something else")
        return base, ""
    ensemble = next((e for e in sorted(ENSEMBLES, key=len, reverse=True) if base.endswith(f"-{e}")), "")
    base = base.removesuffix(f"-{ensemble}")
    if base not in BASES and base not in REGISTERED and not USERS_OWN.fullmatch(base):
        stem = base.partition("-")[0]
        mine = tuple(f"{stem}-{e}" for e in ENSEMBLES) if USERS_OWN.fullmatch(stem) else ()
        near = difflib.get_close_matches(name, mine or PAPER + KNOWN_ANSWER, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(
            f"unknown estimator '{name}'{hint} Known: {', '.join(PAPER + KNOWN_ANSWER)}, paper (its 20)"
            f" or your own as module:function; each also with -{', -'.join(VARIANTS)}"
        )
    return base, ensemble


def group_of(name: str) -> str:
    """Which estimators are computed together, as a file-name-safe word: a base's family, or all controls.

    A recursive one is alone: it trains models of its own.
    """
    base, _ = split_name(name)
    if variant_of(name) == "recursive":
        return name.replace(":", ".")
    return "controls" if base in CONTROLS + KNOWN_ANSWER else base.replace(":", ".")
