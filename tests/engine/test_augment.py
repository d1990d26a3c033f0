import numpy as np
import torch
from torchvision.transforms import functional as TF

from roarlib.engine.augment import AREA, RATIO, augment, boxes


def test_shifts_and_flips_of_whole_images_padded_with_the_fill():
    images = torch.arange(1.0, 2 * 64 + 1).reshape(1, 2, 8, 8).repeat(200, 1, 1, 1)
    out = augment(images, "crop-flip", torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images[:1], (4, 4, 4, 4))
    views = [padded[:, :, r : r + 8, c : c + 8] for r in range(9) for c in range(9)]
    views = torch.cat(views + [v.flip(3) for v in views])
    found = [int((views == o).all(-1).all(-1).all(-1).nonzero()[0]) for o in out]  # each is one of the 162
    assert len(set(found)) > 80 and 60 < sum(f >= 81 for f in found) < 140
    assert augment(images, "none", torch.Generator()) is images
    crops = augment(images, "crop", torch.Generator().manual_seed(0))
    assert all((views[:81] == o).all(-1).all(-1).all(-1).any() for o in crops)


def test_random_area_crops_equal_torchvisions_resized_crop():
    images = torch.rand(40, 3, 24, 20)
    out = augment(images, "area-flip", torch.Generator().manual_seed(1))
    drawn = boxes(40, 24, 20, torch.Generator().manual_seed(1)).int().T.tolist()
    flipped = 0
    for image, box, ours in zip(images, drawn, out, strict=True):
        theirs = TF.resized_crop(image, *box, [24, 20], antialias=False)
        plain, mirrored = (float((ours - t).abs().max()) for t in (theirs, theirs.flip(2)))
        assert min(plain, mirrored) < 1e-5, box
        flipped += mirrored < plain
    assert 8 < flipped < 32


def test_random_areas_have_the_shares_and_ratios_asked_for():
    top, left, tall, wide = boxes(4000, 224, 224, torch.Generator().manual_seed(0)).numpy()
    share, ratio = tall * wide / 224**2, wide / tall
    assert AREA[0] - 0.01 < share.min() < 0.1 and 0.9 < share.max() <= 1
    assert abs(np.median(np.log(ratio))) < 0.02 and RATIO[0] - 0.05 < ratio.min() and ratio.max() < RATIO[1] + 0.05
    assert (top >= 0).all() and (left >= 0).all() and (top + tall <= 224).all() and (left + wide <= 224).all()
    assert (np.stack([top, left, tall, wide]) % 1 == 0).all()
