"""The one catalogue of names: estimators and their parts, modes, units and measures, with labels and line styles.

An estimator's name is a base, an ensemble around it, and a variant of either: `ig-sg-squared-blur` has all three.
An estimator looks the same in every figure. For the paper's, colour shows the ensemble and dashes the base, in colours
of Okabe and Ito (2008), which colour-blind readers can tell apart; any other base has its own colour (one of Tol's
muted ones, 2021; for users' own, by hash), and the marker shows the ensemble.
"""

import colorsys
import difflib
import re
import zlib
from typing import NamedTuple


class Look(NamedTuple):
    """How a part of a name is shown: label ({}: what it wraps), colour, marker, dashes, and its name in menus."""

    label: str
    color: str = ""
    marker: str = ""
    dashes: str | tuple = "-"
    menu: str = ""


BASES = {"grad": Look("GRAD"), "gb": Look("GB", dashes=(0, (5, 1.5))), "ig": Look("IG", dashes=(0, (1.5, 1)))}
READY = {  # ready-made, beyond the paper's: see engine.cams
    "gradcam": Look("Grad-CAM", "#332288"),
    "hirescam": Look("HiResCAM", "#AA4499"),
    "rise": Look("RISE", "#999933"),
    "occlusion": Look("Occlusion", "#882255"),
    "lrp": Look("LRP", "#44AA99"),
    "rollout": Look("Rollout", "#CC6677"),
}
NAMED = BASES | READY
ENSEMBLES = {
    "": Look("{}", "#0072B2", "o", menu="plain"),
    "squared": Look("{}²", "#56B4E9", "s", menu="squared"),
    "sg": Look("SG-{}", "#D55E00", "^", menu="SG"),
    "sg-squared": Look("(SG-{})²", "#E69F00", "v", menu="SG squared"),
    "sgsq": Look("SG-SQ-{}", "#009E73", "D", menu="SG-SQ"),
    "var": Look("VAR-{}", "#CC79A7", "P", menu="VAR"),
}
CONTROLS = {"random": Look("Random", "#000000", "", (0, (4, 2))), "sobel": Look("Sobel", "#808080", "x")}
KNOWN_ANSWER = {  # for data whose informative pixels are known
    "oracle": Look("Oracle", "#8C510A", "*"),
    "anti-oracle": Look("Anti-oracle", "#8C510A", "*", (0, (2, 2))),
}
MIXED = {"mix25": 25, "mix50": 50, "mix75": 75, "mix100": 100}  # variant -> percent of the units in random order
VARIANTS = {  # of any estimator: see attribute.VARIANTS and mixed; recursive has its own module
    "blur": Look("{} blurred", dashes=(0, (1, 1))),
    "max": Look("{} max-filtered", dashes=(0, (1, 2))),
    "abs": Look("|{}|", dashes=(0, (3, 1, 1, 1))),
    "reversed": Look("{} reversed", dashes=(0, (2, 2))),
    "recursive": Look("{} recursive", dashes=(0, (7, 2))),
    **{name: Look(f"{{}} {share}% mixed", dashes=(0, (2, share / 20))) for name, share in MIXED.items()},
}
NOT_OF_RANDOM = ("abs", "reversed", "recursive", *MIXED)
USERS_DASHES = [(0, (6, 1.5, 1.5, 1.5)), (0, (8, 1.5)), (0, (4, 1, 1, 1, 1, 1)), (0, (2, 1))]
HUES = [hue for hue in range(0, 360, 20) if not 180 <= hue <= 220]  # for users' own; not near GRAD's blue, at 202
TAKEN: dict[str, int] = {}  # base -> hue, in this process
QUIET = {"", "squared"}  # ensembles of one pass, without noise
PAPER = tuple(f"{b}-{e}" if e else b for b in BASES for e in ENSEMBLES) + tuple(CONTROLS)
FIXED = CONTROLS | KNOWN_ANSWER  # bases without ensembles

RESTS = {"recursive_steps": "-recursive", "imputation_noise": "-imputed"}  # key -> ending of names that rest on it
UNITS = {"value": "single values", "pixel": "whole pixels"}
MODES = {  # what a model sees
    "remove": "removed",
    "keep": "kept",
    "remove-imputed": "removed and imputed",
    "keep-imputed": "kept, the rest imputed",
    "mask": "removed, their mask alone",
}
MEASURES = {"base": "base model", "ranking": "ranking", "deletion": "not retrained", "retrain": "retrained"}
CURVES = ("retrain", "deletion")  # the measures of which curves are drawn

REGISTERED: set[str] = set()  # by estimators.register, in this process
USERS_OWN = re.compile(r"(?!maps:)[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:function
PACKAGES = ("captum:", "timm:", "torchvision:", "folder:", "npz:")  # prefixes of names that look like module:function
MAPS = re.compile(r"maps:[A-Za-z0-9][\w-]*")  # maps:folder, finished maps


DEPTHS = {f"top{share}": share for share in (0, 1, 25, 50, 75, 100)}  # mode of a sanity row -> percent of the
# layers, from the top, whose weights are drawn anew (at least one layer); 0: none, only the noise differs
OVERLAPS = (10, 30)  # percents t at which a sanity row compares rankings


def alike(*names: str) -> bool:
    """Whether two names are similar in both module and function; a name without a module fits any module."""
    pairs = zip(*(f":{name.lower()}".replace(".", ":").rsplit(":", 2)[-2:] for name in names), strict=True)
    return all("" in pair or difflib.SequenceMatcher(None, *pair).ratio() >= 0.75 for pair in pairs)


def keeps(mode: str) -> bool:
    """Whether a mode keeps the most important inputs (KAR) rather than removing them."""
    return mode.startswith("keep")


def imputes(mode: str) -> bool:
    """Whether removed inputs are imputed from their neighbours (ROAD's fill) rather than set to the mean."""
    return mode.endswith("-imputed")


def expand(names: list[str]) -> list[str]:
    """A study's list of estimators, in full and once each: `paper`, and `*-blur` for a variant of all before it.

    There are no variants of variants, and of Random only the smoothing ones. ValueError for an unknown name.
    """
    found = []
    for name in names:
        if name == "paper":
            found += PAPER
        elif name.startswith("*-") and name[2:] in VARIANTS:
            fits = [n for n in found if n != "random" or name[2:] not in NOT_OF_RANDOM]
            found += [n + name[1:] for n in fits if not variant_of(n)]
        else:
            split_name(name)
            found.append(name)
    return list(dict.fromkeys(found))


def variant_of(name: str) -> str:
    """'grad-sgsq-blur' -> 'blur'; empty for an estimator that is no variant of another."""
    return next((v for v in VARIANTS if name.endswith(f"-{v}")), "")


def in_orders(name: str) -> bool:
    """Whether orders of estimators that are set beside each other count it: not Random, their yardstick, nor variants.

    Metrics agree on those easily, and a variant has its parent's scores.
    """
    return name != "random" and not variant_of(name)


def mixed_share(name: str) -> int:
    """'grad-squared-mix25' -> 25, the percent of its units in random order; 0 if it is not mixed."""
    return MIXED.get(variant_of(name), 0)


def asks_model(name: str) -> bool:
    """Whether an estimator can explain another model at once: finished maps cannot, a recursive one trains its own.

    Mixed ones are left out, as they would only repeat their parent.
    """
    return not (MAPS.fullmatch(split_name(name)[0]) or variant_of(name) == "recursive" or mixed_share(name))


def reads_network(name: str) -> bool:
    """Whether an estimator's rankings rest on the network explained: not those of controls and of finished maps."""
    base, _ = split_name(name)
    return base not in FIXED and not MAPS.fullmatch(base)


def parent_of(name: str) -> str:
    """What an estimator is made from: 'grad-sg-blur' -> 'grad-sg' -> 'grad' -> ''."""
    if variant := variant_of(name):
        return name.removesuffix(f"-{variant}")
    base, ensemble = split_name(name)
    return base if ensemble else ""


def split_name(name: str) -> tuple[str, str]:
    """An estimator's name as (base, ensemble): 'ig-sg-squared' -> ('ig', 'sg-squared'), 'grad-blur' -> ('grad', '').

    Raises ValueError for a name that is not an estimator's.
    """
    variant = variant_of(name)
    base = name.removesuffix(f"-{variant}") if variant else name
    if base in FIXED:
        if base == "random" and variant in NOT_OF_RANDOM:
            raise ValueError(f"unknown estimator '{name}': Random has no sign and no order to change")
        return base, ""
    ensemble = max((e for e in ENSEMBLES if e and base.endswith(f"-{e}")), key=len, default="")
    base = base.removesuffix(f"-{ensemble}") if ensemble else base
    if MAPS.fullmatch(base):
        if ensemble not in QUIET or variant == "recursive":
            raise ValueError(
                f"'{name}': finished maps are of untouched images; {variant or ensemble} explains others too "
                "(a folder of that name must be renamed)"
            )
    elif base not in NAMED and base not in REGISTERED and not USERS_OWN.fullmatch(base):
        raise ValueError(_unknown(name, base))
    return base, ensemble


def is_estimator(name) -> bool:
    """Whether anything, as a cell of somebody's table, is an estimator's name."""
    try:
        return bool(split_name(str(name)))
    except ValueError:
        return False


def _unknown(name: str, base: str) -> str:
    if name.startswith("maps:"):
        return f"'{name}': the folder's name must have letters, digits, _ and - alone"
    stem = base.partition("-")[0]
    mine = [f"{stem}-{e}" for e in ENSEMBLES if e] if USERS_OWN.fullmatch(stem) else []
    known = [*PAPER, *KNOWN_ANSWER, *READY]
    near = difflib.get_close_matches(name, mine or known, 1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return (
        f"unknown estimator '{name}'{hint} Known: {', '.join(known)}, paper (its 20), your own as module:function "
        f"or maps:folder; each also with -{', -'.join(VARIANTS)}"
    )


def group_of(name: str) -> str:
    """The group that an estimator is computed in, as a word fit for file names: its base's family, or all controls.

    A recursive estimator is a group of its own, since it trains its own models.
    """
    base, _ = split_name(name)
    if variant_of(name) == "recursive":
        return safe(name)
    return "controls" if base in FIXED else safe(base)


def safe(name: str) -> str:
    """An estimator's name for files: 'mine:edges-sg' -> 'mine.edges-sg'."""
    return name.replace(":", ".")


def label(name: str) -> str:
    """The name as readers know it: 'ig-sg-squared' -> '(SG-IG)²'; users' own estimators keep their name."""
    if variant := variant_of(name):
        return VARIANTS[variant].label.format(label(parent_of(name)))
    if name in FIXED:
        return FIXED[name].label
    base, ensemble = split_name(name)
    return ENSEMBLES[ensemble].label.format(NAMED[base].label if base in NAMED else base)


def style(name: str) -> dict:
    """Line keywords for matplotlib: color, linestyle, marker, linewidth, markersize."""
    if variant := variant_of(name):
        return style(parent_of(name)) | dict(linestyle=VARIANTS[variant].dashes, linewidth=1.1)
    base, ensemble = split_name(name)
    look = FIXED.get(name) or ENSEMBLES[ensemble]
    of_base = look if name in FIXED else NAMED.get(base) or _users_look(base)
    color, width = of_base.color or look.color, 1.8 if name == "random" else 1.3
    return dict(color=color, linestyle=of_base.dashes, marker=look.marker, linewidth=width, markersize=3.5)


def _users_look(base: str) -> Look:
    """A hue and dashes derived from the name, so that it looks the same in every figure.

    If two names in one process would share a hue, the later one takes the next free one.
    """
    number = zlib.crc32(base.encode())
    free = [hue for k in range(len(HUES)) if (hue := HUES[(number + k) % len(HUES)]) not in TAKEN.values()]
    hue = TAKEN.setdefault(base, free[0] if free else HUES[number % len(HUES)])
    parts = colorsys.hsv_to_rgb(hue / 360, 0.9, 0.75)
    color = "#" + "".join(f"{round(255 * part):02X}" for part in parts)
    return Look(base, color, dashes=USERS_DASHES[number // len(HUES) % len(USERS_DASHES)])


def in_order(names) -> list[str]:
    """Estimators in the catalogue's order: by base, users' own by name, then controls; each before its variants."""
    known = [f"{b}-{e}" if e else b for b in NAMED for e in ENSEMBLES]
    plain = {parent_of(n) if variant_of(n) else n for n in names}
    own = sorted(plain - {*known, *FIXED})
    parts = ("", *(f"-{v}" for v in VARIANTS))
    return [n + part for n in (*known, *own, *FIXED) for part in parts if n + part in set(names)]
