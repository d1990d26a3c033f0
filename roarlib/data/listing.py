"""Which image is which: a study's images in its order, so that maps can be made anywhere and matched to them."""

import hashlib
import os

import pandas as pd

from roarlib.data import datasets, photos
from roarlib.study.params import Study

COLUMNS = ["index", "split", "file", "label", "sha256"]


def images(study: Study, hashes: bool = True) -> pd.DataFrame:
    """COLUMNS of every image: number in its split, split, picture file relative to the data set's folder, class.

    sha256: of the picture file; for a data set of arrays, where `file` is empty, of the image's uint8 (C, H, W). It is
    empty without `hashes`.
    """
    data, parts = datasets.load(study), {}
    paths = datasets.pictures(study)
    common = os.path.commonpath([path.parent for found in paths.values() for path in found]) if paths else ""
    for split in datasets.SPLITS:
        here = data.split(split)
        names = [photos.shown(path.relative_to(common)) for path in paths.get(split, [])] or [""] * len(here)
        parts[split] = pd.DataFrame({"split": split, "file": names, "label": here.labels})
        content = (path.read_bytes() for path in paths[split]) if paths else (image.tobytes() for image in here.images)
        parts[split]["sha256"] = [hashlib.sha256(c).hexdigest() for c in content] if hashes else ""
    return pd.concat(parts.values()).rename_axis("index").reset_index()[COLUMNS]
