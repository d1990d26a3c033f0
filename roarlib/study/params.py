"""A study's parameters: every knob with its type, unit, range and default; YAML in, one validated object out."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StrictInt, ValidationError, field_validator, model_validator

from roarlib.study import files, yaml12
from roarlib.study.files import outputs, root, write_atomically
from roarlib.study.names import BASES, FIXED, KNOWN_ANSWER, MAPS, MODES, RESTS, alike, expand, imputes, split_name

Percent = Annotated[StrictInt, Field(ge=0, le=100)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**62)]
Seeds = Annotated[list[Seed], Field(min_length=1)] | Literal["auto"]
Count = Annotated[StrictInt, Field(ge=1)]
Mode, Scored = Literal[tuple(MODES)], Literal[tuple(mode for mode in MODES if mode != "mask")]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # no text, no boolean


class InputError(ValueError):
    """The user's input is wrong; the message is one line that names what is wrong and says what would be right."""


class Study(BaseModel, extra="forbid", frozen=True):
    """One study: what to explain, how to remove, what to retrain. Field order is the order of the YAML files."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)  # folder under outputs/
    # data
    dataset: str = "textures"  # a name in datasets.DATASETS, folder:PATH, npz:FILE, or module:function
    data_dir: str | None = None  # folder of the data sets; None: $ROAR_DATA, else data/ in the project
    files_dir: str | None = None  # folder of the files that it brings (maps, weights ..); None: beside its YAML
    train_images: Annotated[StrictInt, Field(ge=0)] = 0  # the first n, of own data and photos evenly by class; 0: all
    test_images: Annotated[StrictInt, Field(ge=0)] = 0
    image_size: Annotated[StrictInt, Field(ge=0)] = 0  # px per side of photographs' centre crop; 0: 224
    resize: Annotated[StrictInt, Field(ge=0)] = 0  # px of their short side before the crop; 0: 8/7 of image_size
    normalise: Literal["train", "imagenet", "0.5"] = "train"  # by mean and std of the train set, ImageNet, or 0.5
    # model and training recipe, the same for the base model and every retraining
    model: str = "resnet-tiny"  # a name in models.MODELS or torchvision (torchvision:NAME), timm:NAME, module:function
    base_weights: str | None = None  # a trained network to explain, .safetensors or .pt; None: train one
    epochs: Count = 8
    batch_size: Count = 128
    micro_batch: Annotated[StrictInt, Field(ge=0)] = 0  # images per pass, gradients summed over a batch; 0: all of it
    learning_rate: Real = Field(0.2, gt=0)  # peak
    optimiser: Literal["sgd", "adamw"] = "sgd"
    momentum: Real = Field(0.9, ge=0, lt=1)  # Nesterov's; for AdamW the first beta
    weight_decay: Real = Field(5e-4, ge=0)  # not on norms and biases
    label_smoothing: Real = Field(0.1, ge=0, lt=1)
    warmup: Real = Field(0.2, ge=0, lt=1)  # share of the steps over which the rate rises; then it falls to 0
    drop_epochs: list[Count] = []  # if given: after the warm-up the rate stays, and falls to a tenth at each
    augment: Literal["none", "crop", "crop-flip", "area-flip"] = "crop-flip"  # after removal; see engine.augment
    precision: Literal["float32", "bfloat16", "auto"] = "auto"  # of training; auto: bfloat16 where the device has it
    flip_average: bool = Field(False, strict=True)  # tests average the logits of an image and its mirror image
    # estimators
    estimators: list[str] = Field(min_length=1)  # names; `paper`: its 18 and 2 controls; `*-blur`: see names.expand
    estimator_options: dict[str, dict] = {}  # base -> keyword arguments; not for the paper's bases
    target: Literal["predicted", "label"] = "predicted"  # the class explained: the base model's, or the true one
    units: list[Literal["value", "pixel"]] = Field(["pixel"], min_length=1)  # what is ranked and removed
    noise_samples: Count = 15  # J of the SmoothGrad family
    noise_level: Real = Field(0.15, ge=0)  # sigma as a share of each image's (max - min), normalised space
    ig_steps: Count = 25
    ig_reference: Literal["black", "mean", "grey"] = "black"  # grey: halfway to white
    attribution_precision: Literal["float32", "bfloat16", "auto"] = "float32"
    recursive_steps: list[Annotated[StrictInt, Field(ge=1, le=99)]] = [10, 30, 50, 70]  # t of new `-recursive` maps
    # grid
    modes: list[Mode] = Field(["remove"], min_length=1)  # retrained; all but mask are also scored without retraining
    scored_modes: list[Scored] = []  # further modes, only scored without retraining
    fill: Literal["train-mean", "image-mean"] = "train-mean"  # value of holes, per channel, in modes that do not impute
    imputation_noise: Real = Field(0.01, ge=0)  # standard deviation added to imputed inputs, in 0..1 units
    sanity_images: Annotated[StrictInt, Field(ge=0)] = 0  # test images also explained with random weights; 0: none
    percents: list[Percent] = Field([10, 30, 50, 70, 90], min_length=1)  # t; 0 (untouched) is always run too
    seeds: Seeds = [0, 1, 2, 3, 4]  # one retraining each, same for all; auto: until all are decided, see answers.looks
    seeds_max: Annotated[StrictInt, Field(ge=3)] = 12  # most that auto gives to an estimator that stays open
    hours: Real = Field(0, ge=0)  # hours of work beyond which auto adds no seeds; 0: no limit
    base_seed: Seed = 0  # of the base model, the noise, the ties and Random
    base_models: Literal["one", "each-seed"] = "one"  # each-seed: every seed has a base model and rankings of its own
    margin: Real = Field(1.0, gt=0, lt=100)  # points of accuracy: a smaller difference from Random counts as equal
    # machine: may change between runs of one study
    device: str = "auto"  # auto, cpu, cuda, cuda:1 ..
    workers: Annotated[StrictInt, Field(ge=0)] = 0  # cells at a time; 0: one per core, or one per GPU
    cell_hours: Real = Field(24, gt=0)  # a cell that takes longer counts as hanging and is stopped
    memory_gb: Real = Field(0, ge=0)  # a cell's images and ranking above it stream from disk; 0: a third of free memory
    rankings: Literal["keep", "recompute"] = "keep"  # recompute: deleted after use, made again if needed again

    @field_validator("estimators")
    @classmethod
    def _expand(cls, names):
        return expand(names)

    @field_validator("normalise", mode="before")
    @classmethod
    def _half(cls, value):
        return "0.5" if value == 0.5 else value

    @field_validator("percents", "recursive_steps", mode="before")
    @classmethod
    def _no_shares(cls, values):
        numbers = [v for v in values if type(v) in (int, float) and v > 0] if isinstance(values, list) else []
        shares = [v for v in numbers if v < 1 or max(numbers) <= 1]
        if any(v < 1 for v in shares):
            *others, last = [str(max(1, round(100 * v))) for v in shares]
            raise ValueError(f"write {', '.join(others)}{' and ' if others else ''}{last} (percent, not shares)")
        return values

    @field_validator("units", "modes", "scored_modes", "percents", "seeds")
    @classmethod
    def _no_repeats(cls, values):
        if len(set(values)) < len(values):
            raise ValueError(f"has an entry twice: {values}")
        return values

    @field_validator("percents")
    @classmethod
    def _zero_is_shared(cls, values):
        return sorted(set(values) - {0}) or [0]

    @model_validator(mode="after")
    def _fits_together(self):
        if self.modes[0] == "mask":
            raise ValueError("modes: mask judges no estimator, so another mode, such as remove, must come first")
        if self.recursive_steps != sorted(set(self.recursive_steps)):
            raise ValueError(f"recursive_steps must rise: {self.recursive_steps}")
        if self.drop_epochs != sorted(set(self.drop_epochs)) or self.drop_epochs[-1:] >= [self.epochs]:
            raise ValueError(f"drop_epochs must rise, and stay below epochs ({self.epochs}): {self.drop_epochs}")
        if 0 < self.resize < (self.image_size or 224):
            raise ValueError(f"resize: {self.resize} is less than image_size, {self.image_size or 224}")
        if self.seeds == "auto" and "random" not in self.estimators:
            raise ValueError("seeds: auto needs random among the estimators")
        if self.base_models == "each-seed" and self.base_seed not in (range(3) if self.seeds == "auto" else self.seeds):
            raise ValueError(f"base_seed: {self.base_seed} is none of the seeds, each of which has its own base model")
        parts = {name: split_name(name) for name in self.estimators}
        given = ["base_weights"] * bool(self.base_weights) + [b for b, _ in parts.values() if MAPS.fullmatch(b)]
        if given and self.base_models == "each-seed":
            raise ValueError(f"base_models: each-seed, but {given[0]} speaks of one model")
        if slips := [slip for name in self.estimator_options if (slip := _slip(name, self))]:
            raise ValueError(f"estimator_options: {slips[0]}")
        for name, (base, ensemble) in parts.items():
            if ensemble == "var" and (self.noise_level == 0 or self.noise_samples == 1):
                raise ValueError(f"estimators: {name} is 0 without noise; raise noise_level and noise_samples")
            if base in KNOWN_ANSWER and self.dataset.partition("-")[0] != "textures":
                raise ValueError(f"estimators: {name} needs the true informative pixels, which only textures has")
        return self

    _home: Path | None = None  # set for a study read from a file: see `files.home_of`

    @property
    def home(self) -> Path:
        """Where results and prepared images lie: $ROAR_OUTPUTS, or outputs/ of the project, or beside the study."""
        return self._home or outputs()

    @property
    def folder(self) -> Path:
        """Where the study's results lie."""
        return self.home / self.name

    @property
    def bases(self) -> set[str]:
        """The bases of the estimators."""
        return {split_name(name)[0] for name in self.estimators}

    @property
    def brings(self) -> list[str]:
        """Names of the files and folders that the study needs and that may lie beside its YAML."""
        kind, _, name = self.dataset.partition(":")
        found = sorted(base.removeprefix("maps:") for base in self.bases if MAPS.fullmatch(base))
        return found + [name] * (kind in ("folder", "npz")) + [self.base_weights] * bool(self.base_weights)

    @property
    def base_seeds(self) -> list[int]:
        """The seeds of all base models; with `seeds: auto`, of all that there may be."""
        seeds = list(range(self.seeds_max)) if self.seeds == "auto" else self.seeds
        return seeds if self.base_models == "each-seed" else [self.base_seed]

    def based(self, seed: int | None) -> "Study":
        """The study with the base model of retrainings with this seed; the study itself if there is only one."""
        if seed is None or self.base_models == "one":
            return self
        return self.model_copy(update={"base_seed": seed})

    @property
    def of_base(self) -> str:
        """Ending of the names of files that belong to one of several base models; empty if there is only one."""
        return f"-b{self.base_seed}" if self.base_models == "each-seed" else ""


# Keys that only select what is run: they may change under existing outputs, since every row names its own values.
SELECTION = ("estimators", "units", "modes", "scored_modes", "sanity_images", "percents", "seeds", "hours")
MACHINE = ("data_dir", "files_dir", "device", "workers", "cell_hours", "memory_gb", "rankings")
# Keys in which rows of one study may differ all the same: of its name, judgement, or of some rows alone.
OTHER = "name margin seeds_max estimator_options recursive_steps imputation_noise".split()


def load(path: str | Path) -> Study:
    """Read a study from YAML; a relative path is tried from the working folder, then from the project's root.

    Raises InputError (one line) for a missing file, broken YAML, an unknown key or a bad value.
    """
    found = next((p for p in (Path(path), root() / path) if p.is_file()), None)
    if found is None:
        there = ", ".join(sorted(f"params/{p.name}" for p in (root() / "params").glob("*.yaml")))
        raise InputError(f"{path}: no such file; the studies here are {there}")
    values = read(found)
    values = {"name": found.stem} | {str(key): value for key, value in values.items()}
    try:
        study = Study(**values)
    except ValidationError as error:
        wrong = [e for e in error.errors() if e["loc"][-1:] != ("literal['auto']",)]  # the list's error says it
        raise InputError(f"{path}: " + "; ".join(map(_said, wrong))) from None
    beside = found.parent.resolve()
    given = study.files_dir and beside / Path(study.files_dir).expanduser()
    if not (given and given.is_dir()):
        given = beside if any((beside / name).exists() for name in study.brings) else None
    if study.files_dir != (where := str(given) if given else None):
        study = study.model_copy(update={"files_dir": where})
    study._home = files.home_of(found.resolve(), study.name)
    return study


def read(file: str | Path) -> dict:
    """The `key: value` lines of a YAML 1.2 file; InputError, with the file and the line, for anything else."""
    try:
        values = yaml12.load(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise InputError(f"{file}: not readable as YAML: must be a mapping of 'key: value' lines, but is a {kind}")
    return values


def dump(study: Study) -> str:
    """A study as YAML that `load` reads as the same study."""
    return yaml12.dump(study.model_dump())


def save(study: Study) -> Path:
    """Write study.yaml beside the outputs and return its path; InputError if results there have other parameters."""
    path = agree(study)
    write_atomically(path, dump(study))
    return path


def agree(study: Study) -> Path:
    """The path of study.yaml, beside the outputs; InputError, with the differences, if results there have others.

    Only what changes the meaning of existing rows counts: keys in SELECTION and MACHINE may differ. Options of
    estimators are compared row by row instead (`own.source`). Without any results, everything may differ.
    """
    path = study.folder / "study.yaml"
    if not path.is_file() or not files.has_results(study.folder):
        return path
    old, free = load(path), {*SELECTION, *MACHINE, "estimator_options"}
    free.update(["base_seed"] * (study.base_models == "each-seed"), ["seeds_max"] * (old.seeds != "auto"))
    steps = any(n.endswith("-recursive") for n in old.estimators)
    noise = any(map(imputes, (*old.modes, *old.scored_modes)))
    for (key, word), listed in zip(RESTS.items(), (steps, noise), strict=True):
        if getattr(old, key) != getattr(study, key) and not listed and not files.mentions(path.parent, word):
            free.add(key)  # nothing there depends on it
    unlike = [(key, getattr(old, key), getattr(study, key)) for key in Study.model_fields if key not in free]
    if said := [f"{what}: {there} there, {now} now" for what, there, now in unlike if there != now]:
        raise InputError(
            f"{path.parent} holds results of other parameters ({'; '.join(said)}); give the study "
            "another name, or delete that folder"
        )
    return path


def _slip(name: str, study: Study) -> str:
    """What is wrong with a key of estimator_options; empty for a base that the study lists, or is merely unused."""
    own = sorted(base for base in study.bases - {*BASES, *FIXED} if not MAPS.fullmatch(base))
    if name in own:
        return ""
    wrong = f"{name} is no estimator of yours or Captum's in this study"
    if base := next((base for base in (*own, *BASES, *FIXED) if f"{name}-".startswith(f"{base}-")), ""):
        return f"{wrong}; write {base}, whose ensembles and variants share its options" if base in own else wrong
    near = next((other for other in own if other not in study.estimator_options and alike(name, other)), "")
    return f"{wrong}; did you mean {near}? If not, leave it out" if near else ""


def _said(error: dict) -> str:
    """One pydantic error as a phrase: the key, the value, what is allowed."""
    key = ".".join(str(part) for part in error["loc"] if not str(part).startswith("list[")) or "study"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Study.model_fields, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(Study.model_fields)}"
        return f"unknown key '{key}'; {hint}"
    if error["type"] == "missing":
        return f"the key '{key}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if message.startswith("Input") else message
    message += ": true or false" * (error["type"] == "bool_type")
    if error["type"] == "string_pattern_mismatch":
        message = "small letters, digits, - and _ alone, as in my-study.yaml"
    if error["type"] == "list_type":
        message += " or auto" * (key == "seeds") + f"; write [{error['input']}]"
    if error["type"] == "int_type" and isinstance(error["input"], float) and error["input"].is_integer():
        message += f"; write {int(error['input'])}"
    value = f" = {error['input']!r}" if error["loc"] and "unknown estimator" not in message else ""
    return f"{key}{value}: {message}" if error["loc"] else message
