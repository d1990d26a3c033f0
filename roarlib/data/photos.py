"""Folders of photographs: which picture belongs to which split and class, and one picture as the model sees it.

Layouts: ImageNet, Food-101, Birdsnap, and any folder with train/ and test/ (or val/), one folder per class in each.
"""

import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.transforms import functional as TF

from roarlib.data.prepare import of_each_class
from roarlib.study.brought import Missing
from roarlib.study.machine import cores
from roarlib.study.params import InputError

TEST_FOLDERS = ("test", "val", "valid", "validation")
COUNTS = {"imagenet": (1_281_167, 50_000), "food101": (75_750, 25_250), "birdsnap": (47_386, 2_443)}  # train, test
CLUTTER = re.compile(r"\.|(@eadir|__macosx|thumbs\.db|desktop\.ini)\Z", re.IGNORECASE)  # left by file managers
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}  # which Pillow alone cannot decode


@dataclass(frozen=True)
class Photos:
    """Picture files and their labels, int64 (N,), to be decoded to `size` pixels per side: see `view`.

    missing: listed files that do not exist. others: extension -> number of files that are not pictures.
    """

    paths: list[Path]
    labels: np.ndarray
    resize: int
    size: int
    missing: list[str] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)

    def __len__(self):
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every decoded image."""
        return 3, self.size, self.size

    def read(self, part: slice) -> tuple[np.ndarray, dict[int, str]]:
        """The readable pictures of a part, uint8 (n, 3, size, size), and for the others number -> "name (reason)"."""

        def look(number: int):
            try:
                return view(self.paths[number], self.resize, self.size)
            except Exception as error:  # decoders raise all sorts of errors
                if isinstance(error, InputError) or getattr(error, "errno", None):  # for the user, or a disk error
                    raise
                return f"{shown(self.paths[number])} ({' '.join(str(error).split())[:60]})"

        with ThreadPoolExecutor(cores()) as pool:  # decoding releases the GIL
            found = dict(zip(range(part.start, part.stop), pool.map(look, range(part.start, part.stop)), strict=True))
        bad = {number: said for number, said in found.items() if isinstance(said, str)}
        good = [image for number, image in found.items() if number not in bad]
        return np.stack(good) if good else np.empty((0, *self.shape), np.uint8), bad

    def first(self, count: int, evenly: bool = True) -> "Photos":
        """`count` pictures, 0 for all, always as evenly from all classes as possible: files are sorted by class."""
        chosen = of_each_class(self.labels, count or len(self.labels))
        return replace(self, paths=[self.paths[i] for i in chosen], labels=self.labels[chosen])


def view(path: Path, resize: int, size: int) -> np.ndarray:
    """One picture as uint8 (3, size, size): turned upright, RGB, short side scaled to `resize`, centre cropped.

    The paper's test-time view (256, 224). Transparent parts become white; 0..65535 is scaled to 0..255; of several
    frames the first is taken. Raises OSError or ValueError for a file that is not a complete picture, InputError if the
    range of its values is unknown.
    """
    with Image.open(path) as image:
        scale = image.format == "PNG" and {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}.get(image.tile[0][3])
        if scale and "transparency" in image.info:  # Pillow scales pixels to 8 bits, but leaves this as in the file
            image.info["transparency"] = (np.array(image.info["transparency"]) * scale).astype(int).tolist()
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":  # more than 8 bits, which convert would clip
            values = np.asarray(image)
            if image.mode == "F" or values.min() < 0 or values.max() > 65535:
                raise InputError(
                    f"{shown(path)}: mode {image.mode}, {values.min():g} to {values.max():g}; nothing says which value "
                    "is white: save it with 8 bits (0 to 255) or 16 (0 to 65535), or remove it"
                )
            values = np.where(values == image.info.get("transparency", -1), 65535, values)
            image = Image.fromarray((values / 257).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = TF.center_crop(TF.resize(image.convert("RGB"), resize), size)
        return np.asarray(image).transpose(2, 0, 1)


def shown(name: str | Path) -> str:
    """A file name that can be printed and stored: bytes that are not UTF-8 (an é in Latin-1) become \\xe9."""
    return str(name).encode(errors="surrogateescape").decode(errors="backslashreplace")


def find(dataset: str, folder: Path, resize: int, size: int) -> tuple[Photos, Photos, list[str]]:
    """(train, test, class names) of `imagenet`, `food101`, `birdsnap` or `folder:PATH` under a data folder.

    resize, size: as for `view`. `Missing` says what to download and where to put it.
    """
    if dataset.startswith("folder:"):
        *parts, classes = _folder(folder / Path(dataset.removeprefix("folder:")).expanduser(), "pictures")
    elif dataset == "imagenet":
        *parts, classes = _folder(folder / "imagenet", "ILSVRC2012 (image-net.org; sorted by torchvision's ImageNet)")
    else:
        *parts, classes = {"food101": _food101, "birdsnap": _birdsnap}[dataset](folder)
    train, test = (Photos(files, np.array(labels, np.int64), resize, size, *rest) for files, labels, *rest in parts)
    return train, test, classes


Part = tuple[list[Path], list[int], list[str], dict[str, int]]  # files, labels, missing files, extensions of others


def _folder(folder: Path, what: str) -> tuple[Part, Part, list[str]]:
    """train/ and test/ (or val/), each with one folder of pictures per class."""
    test = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if test is None or not (folder / "train").is_dir():
        lack = "test/ or val/" if (folder / "train").is_dir() else "train/"
        raise Missing(f"{folder} has no {lack}; put {what} there as train/<class>/ and test/<class>/ (or val/)")
    parts, names = [], []
    for part in (folder / "train", test):
        try:
            classes = sorted(f.name for f in os.scandir(part) if f.is_dir() and not CLUTTER.match(f.name))
        except OSError as error:
            raise InputError(f"{part}: {error.strerror}") from None
        parts.append(_pictures(part, classes))
        names.append([shown(name) for name in classes])
    if names[0] != names[1]:
        odd = sorted(set(names[0]) ^ set(names[1]))
        raise InputError(f"{folder}: train and {test.name} differ in classes, for example {odd[0]}")
    return *parts, names[0]


def _pictures(folder: Path, classes: list[str]) -> Part:
    """Pictures of every kind that Pillow reads, in torchvision's order; other files are counted by extension."""
    kinds = {kind for kind, name in Image.registered_extensions().items() if name not in NOT_READ}
    paths, labels, others = [], [], Counter()
    if loose := sum(f.suffix.lower() in kinds and not CLUTTER.match(f.name) for f in folder.iterdir() if f.is_file()):
        others["pictures in no class's folder"] = loose
    for label, name in enumerate(classes):
        seen = set()  # folders of this class: a link may lead back to one
        for where, _, files in sorted(os.walk(folder / name, followlinks=True)):
            if os.path.realpath(where) in seen or any(map(CLUTTER.match, Path(where).relative_to(folder).parts)):
                continue
            seen.add(os.path.realpath(where))
            files = [Path(where, file) for file in sorted(files) if not CLUTTER.match(file)]
            read = [file for file in files if file.suffix.lower() in kinds]
            paths += read
            labels += [label] * len(read)
            others.update(shown(f.suffix.lower()) or "no extension" for f in files if f.suffix.lower() not in kinds)
        if label not in labels[-1:]:
            raise InputError(f"{shown(folder / name)}: no picture of a kind that can be read, such as .jpg or .png")
    return paths, labels, [], dict(others.most_common())


def _food101(folder: Path):
    """The released layout with meta/train.json and meta/test.json, or a plain pair of folders."""
    base = next((p for p in (folder / "food-101", folder / "food101", folder) if (p / "meta").is_dir()), None)
    if base is None:
        if (folder / "food101" / "train").is_dir():
            return _folder(folder / "food101", "Food-101")
        raise Missing(f"{folder}: put food-101/ there (food-101.tar.gz from data.vision.ee.ethz.ch/cvl/food-101)")
    parts = [json.loads((base / "meta" / f"{name}.json").read_text()) for name in ("train", "test")]
    classes = sorted(parts[0])
    listed = [[(f"{entry}.jpg", classes.index(c)) for c in classes for entry in sorted(part[c])] for part in parts]
    return *(_there(base / "images", pairs) for pairs in listed), classes


def _birdsnap(folder: Path):
    """images.txt, species.txt and test_images.txt as released; pictures in download/images or images."""
    homes = (folder / "birdsnap", folder / "birdsnap" / "birdsnap")
    base = next((p for p in homes if (p / "images.txt").is_file()), None)
    if base is None:
        raise Missing(
            f"{folder}: put birdsnap/ there with images.txt, species.txt and test_images.txt (birdsnap.tgz of "
            "thomasberg.org) and the pictures that its get_birdsnap.py downloads, in birdsnap/download/images/"
        )
    species, images = _tabbed(base / "species.txt"), _tabbed(base / "images.txt")
    tests = {row["path"] for row in _tabbed(base / "test_images.txt")}
    order = {row["id"]: number for number, row in enumerate(species)}
    classes = [row["common"] for row in species]
    home = next((base / p for p in ("download/images", "images") if (base / p).is_dir()), base)
    pairs = sorted(((row["path"], order[row["species_id"]]) for row in images), key=lambda pair: (pair[1], pair[0]))
    train, test = (_there(home, [p for p in pairs if (p[0] in tests) == wanted]) for wanted in (False, True))
    return train, test, classes


def _tabbed(file: Path) -> list[dict[str, str]]:
    try:
        head, *lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    return [dict(zip(head, line, strict=False)) for line in lines]


def _there(folder: Path, pairs: list[tuple[str, int]]) -> Part:
    """The listed pictures that exist, and the names of those that do not."""
    found = [(folder / name, label) for name, label in pairs if (folder / name).is_file()]
    missing = [name for name, _ in pairs if not (folder / name).is_file()]
    return [path for path, _ in found], [label for _, label in found], missing, {}
