"""A study's parameters: every knob with its type, unit, range and default; YAML in, one validated object out."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, field_validator, model_validator

from roarlib.study.files import outputs, root, write_atomically
from roarlib.study.names import BASES, FIXED, KNOWN_ANSWER, MODES, expand, split_name

Percent = Annotated[StrictInt, Field(ge=0, le=100)]
Seed = Annotated[StrictInt, Field(ge=0)]
Count = Annotated[StrictInt, Field(ge=1)]


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that names it and says what would be right."""


class Study(BaseModel):
    """One study: what to explain, how to remove, what to retrain. Field order is the order of the YAML files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)  # folder under outputs/
    # data
    dataset: str = "textures"  # a name of datasets.DATASETS, or folder:PATH of photographs
    data_dir: str | None = None  # where data sets lie; None: $ROAR_DATA, else ./data
    train_images: Annotated[StrictInt, Field(ge=0)] = 0  # the first so many; 0: all
    test_images: Annotated[StrictInt, Field(ge=0)] = 0
    image_size: Annotated[StrictInt, Field(ge=0)] = 0  # px a side of photographs' centre crop; 0: 224
    resize: Annotated[StrictInt, Field(ge=0)] = 0  # px of their short side before it; 0: 8/7 of image_size
    # model and training recipe, the same for the base model and every retraining
    model: str = "resnet-tiny"  # a name of models.MODELS, of torchvision, or module:function
    epochs: Count = 8
    batch_size: Count = 128
    micro_batch: Annotated[StrictInt, Field(ge=0)] = 0  # images a pass, their gradients summed to a batch; 0: all
    learning_rate: float = Field(0.2, gt=0)  # peak
    momentum: float = Field(0.9, ge=0, lt=1)  # Nesterov
    weight_decay: float = Field(5e-4, ge=0)  # not on batch norms and biases
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    warmup: float = Field(0.2, ge=0, lt=1)  # share of the steps in which the rate rises; then it falls to 0
    drop_epochs: list[Count] = []  # not empty: after the warm-up it stays, and falls to a tenth at each of these
    augment: Literal["none", "crop", "crop-flip", "area-flip"] = "crop-flip"  # after removal; see train.augment
    precision: Literal["float32", "bfloat16", "auto"] = "auto"  # of training; auto: bfloat16 where the device has it
    flip_average: bool = False  # tests average the logits of an image and its mirror image
    # estimators
    estimators: list[str] = Field(min_length=1)  # names; `paper`: its 18 and 2 controls; `*-blur`: see expand
    estimator_options: dict[str, dict] = {}  # base name -> keyword arguments of users' own and Captum's estimators
    units: list[Literal["value", "pixel"]] = Field(["pixel"], min_length=1)  # what is ranked and removed
    noise_samples: Count = 15  # J of the SmoothGrad family
    noise_level: float = Field(0.15, ge=0)  # sigma as a share of each image's (max - min), normalised space
    ig_steps: Count = 25
    ig_reference: Literal["black", "mean"] = "black"
    attribution_precision: Literal["float32", "bfloat16", "auto"] = "float32"
    recursive_steps: list[Annotated[StrictInt, Field(ge=1, le=99)]] = [10, 30, 50, 70]  # percents after which the
    # `-recursive` variants explain a retrained model anew
    # grid
    modes: list[Literal[tuple(MODES)]] = Field(
        ["remove"], min_length=1
    )  # retrained; scored without it, too, but for mask
    scored_modes: list[
        Literal[tuple(m for m in MODES if m != "mask")]
    ] = []  # more modes, only scored without retraining
    imputation_noise: float = Field(0.01, ge=0)  # standard deviation added to imputed inputs, in 0..1 units
    percents: list[Percent] = Field([10, 30, 50, 70, 90], min_length=1)  # t; 0 (untouched) is always run too
    seeds: list[Seed] = Field([0, 1, 2, 3, 4], min_length=1)  # one retraining each, the same for all estimators
    base_seed: Seed = 0  # of the base model, the noise, the ties and Random
    # machine: free to change between runs of one study
    device: str = "auto"  # auto, cpu, cuda, cuda:1 ..
    workers: Annotated[StrictInt, Field(ge=0)] = 0  # cells at a time; 0: one a core, or one on a GPU
    cell_hours: float = Field(24, gt=0)  # a cell that takes longer counts as hanging and is stopped
    memory_gb: float = Field(0, ge=0)  # images and ranking above it stream from the disk; 0: a third of what is free
    rankings: Literal["keep", "recompute"] = "keep"  # recompute: deleted after use, made again if needed again

    @field_validator("estimators")
    @classmethod
    def _expand(cls, names):
        return expand(names)

    @field_validator("units", "modes", "scored_modes", "percents", "seeds")
    @classmethod
    def _no_repeats(cls, values):
        if len(set(values)) < len(values):
            raise ValueError(f"has an entry twice: {values}")
        return values

    @field_validator("modes")
    @classmethod
    def _first_judges(cls, modes):
        if modes[0] == "mask":
            raise ValueError("mask shows what masks tell, and judges nothing: name it after another mode")
        return modes

    @field_validator("recursive_steps")
    @classmethod
    def _rising(cls, values):
        if values != sorted(set(values)):
            raise ValueError(f"must rise: {values}")
        return values

    @field_validator("percents")
    @classmethod
    def _zero_is_shared(cls, values):
        return sorted(set(values) - {0}) or [0]

    @model_validator(mode="after")
    def _fits_together(self):
        if 0 < self.resize < (self.image_size or 224):
            raise ValueError(f"resize: {self.resize} is less than image_size, {self.image_size or 224}")
        parts = {name: split_name(name) for name in self.estimators}
        for name in self.estimator_options:
            if name in BASES | FIXED or name not in {base for base, _ in parts.values()}:
                raise ValueError(f"estimator_options: {name} is no estimator of yours or Captum's in this study")
        for name, (base, ensemble) in parts.items():
            if ensemble == "var" and (self.noise_level == 0 or self.noise_samples == 1):
                raise ValueError(f"estimators: {name} is 0 without noise; raise noise_level and noise_samples")
            if base in KNOWN_ANSWER and self.dataset.partition("-")[0] != "textures":
                raise ValueError(f"estimators: {name} needs the true informative pixels, which only textures has")
        return self

    @property
    def folder(self) -> Path:
        """outputs/<name>, or under $ROAR_OUTPUTS."""
        return outputs() / self.name


# Lists that only select what is run: they may grow or shrink under existing outputs, since a row names its own values.
SELECTION = ("estimators", "units", "modes", "scored_modes", "percents", "seeds")
MACHINE = ("data_dir", "device", "workers", "cell_hours", "memory_gb", "rankings")


def load(path: str | Path) -> Study:
    """Read a study from YAML; relative paths count from the working folder, then from the project's root.

    Raises InputError (one line) for a missing file, broken YAML, an unknown key or a bad value.
    """
    found = next((p for p in (Path(path), root() / path) if p.is_file()), None)
    if found is None:
        raise InputError(f"{path}: no such file; the studies here are {_studies()}")
    try:
        values = yaml.safe_load(found.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping of 'key: value' lines, but is a {type(values).__name__}")
    values = {"name": found.stem} | {str(key): value for key, value in values.items()}
    try:
        return Study(**values)
    except ValidationError as error:
        raise InputError(f"{path}: " + "; ".join(_said(e) for e in error.errors())) from None


def save(study: Study) -> Path:
    """Put the study beside its outputs (study.yaml) and return the file; an unlike study there is an InputError."""
    path = agree(study)
    write_atomically(path, yaml.safe_dump(study.model_dump(), sort_keys=False))
    return path


def agree(study: Study) -> Path:
    """Where study.yaml lies, beside the outputs; InputError if one there has other parameters, which it shows.

    Only what changes the meaning of existing rows counts: the selected lists and the machine may differ.
    """
    path, new = study.folder / "study.yaml", study.model_dump()
    if path.is_file():
        old = load(path).model_dump()
        old["estimator_options"] = new["estimator_options"] | old["estimator_options"]  # more names may have options
        free = SELECTION + MACHINE
        if not any(name.endswith("-recursive") for name in old["estimators"]):
            free += ("recursive_steps",)  # nothing there depends on it
        if not any(mode.endswith("-imputed") for mode in (*old["modes"], *old["scored_modes"])):
            free += ("imputation_noise",)
        fixed = [k for k in new if k not in free]
        unlike = [f"{k}: {old[k]} there, {new[k]} now" for k in fixed if old[k] != new[k]]
        if unlike:
            raise InputError(
                f"{path.parent} holds results of other parameters ({'; '.join(unlike)}); give the study "
                "another name, or delete that folder"
            )
    return path


def _studies() -> str:
    return ", ".join(sorted(f"params/{p.name}" for p in (root() / "params").glob("*.yaml")))


def _said(error: dict) -> str:
    """One pydantic error as a phrase: the key, the value, what is allowed."""
    key = ".".join(str(part) for part in error["loc"]) or "study"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Study.model_fields, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(Study.model_fields)}"
        return f"unknown key '{key}'; {hint}"
    if error["type"] == "missing":
        return f"the key '{key}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if message.startswith("Input") else message
    value = f" = {error['input']!r}" if error["loc"] and "unknown estimator" not in message else ""
    return f"{key}{value}: {message}" if error["loc"] else message
