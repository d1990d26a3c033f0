"""One picture as the model sees it: transparent grounds, more than 8 bits a pixel, several frames."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features
from test_photos import folder_of, paint, study_of

from roarlib.data import datasets, photos, prepare
from roarlib.study.params import InputError

DRAWN = np.zeros((8, 8), bool)
DRAWN[2:5, 1:7] = True  # a black drawing
EXPECTED = np.repeat(np.where(DRAWN, 0, 255)[None], 3, 0)  # on white


def seen(path):
    return photos.view(path, 8, 8)


def drawing(mode):
    """The black drawing with an alpha channel, black where it is transparent too."""
    alpha = Image.fromarray(DRAWN.astype(np.uint8) * 255)
    image = Image.new(mode[:-1], (8, 8), 0)
    if mode == "PA":
        image.putpalette([0, 0, 0] + 255 * [9, 9, 9])
    image.putalpha(alpha)
    assert image.mode == mode
    return image


@pytest.mark.parametrize(
    "mode, suffix", [("RGBA", "png"), ("LA", "png"), ("RGBA", "tif"), ("LA", "tif"), ("PA", "tif"), ("RGBA", "webp")]
)
def test_a_transparent_ground_is_white(tmp_path, mode, suffix):
    drawing(mode).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(seen(tmp_path / f"a.{suffix}"), EXPECTED)


def test_what_is_half_transparent_is_half_white(tmp_path):
    for mode, colour in (("RGBA", (0, 0, 0, 128)), ("LA", (0, 128)), ("RGBA", (255, 0, 0, 64))):
        Image.new(mode, (8, 8), colour).save(tmp_path / "a.png")
        *ink, alpha = colour
        wanted = [round((c * alpha + 255 * (255 - alpha)) / 255) for c in ink] * (3 // len(ink))
        assert np.abs(seen(tmp_path / "a.png")[:, 4, 4].astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("opaque", ["RGBA", "LA"])
def test_an_opaque_alpha_channel_changes_nothing(tmp_path, opaque):
    paint(tmp_path / "a.png", mode=opaque)
    Image.open(tmp_path / "a.png").convert("RGB").save(tmp_path / "b.png")
    assert np.array_equal(photos.view(tmp_path / "a.png", 20, 16), photos.view(tmp_path / "b.png", 20, 16))


@pytest.mark.parametrize("clear", [1, bytes([255, 0])])
def test_a_palette_with_a_transparent_entry_is_on_white(tmp_path, clear):
    image = Image.fromarray(np.where(DRAWN, 0, 1).astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 0, 0, 0])  # black, and another black that is transparent
    image.save(tmp_path / "a.png", transparency=clear)
    assert "transparency" in Image.open(tmp_path / "a.png").info
    assert np.array_equal(seen(tmp_path / "a.png"), EXPECTED)
    if clear == 1:
        image.save(tmp_path / "a.gif", transparency=1)
        assert np.array_equal(seen(tmp_path / "a.gif"), EXPECTED)


def png(path, bits, kind, values, clear=None):
    """A PNG of any depth, (8, 8) grey (kind 0) or (8, 8, 3) RGB (kind 2) values, and which of them is transparent."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    flat = values.reshape(8, -1)
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in flat]
    else:  # most significant bits first
        spread = (flat[..., None] >> np.arange(bits)[::-1]) & 1
        rows = [np.packbits(row).tobytes() for row in spread.reshape(8, -1)]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, kind, 0, 0, 0))
        + (chunk(b"tRNS", np.atleast_1d(clear).astype(">u2").tobytes()) if clear is not None else b"")
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "bits, ground", [(1, 1), (2, 1), (2, 2), (4, 5), (8, 40), (16, 9000), (16, 257)], ids=lambda v: str(v)
)
def test_a_transparent_grey_is_white_at_every_depth(tmp_path, bits, ground):
    png(tmp_path / "a.png", bits, 0, np.where(DRAWN, 0, ground), ground)
    assert np.array_equal(seen(tmp_path / "a.png"), EXPECTED)


@pytest.mark.parametrize("bits, ground", [(8, (0, 0, 7)), (16, (0x1234, 0x8000, 0xFFFF)), (16, (0, 0x8000, 0))])
def test_a_transparent_colour_is_white_at_every_depth(tmp_path, bits, ground):
    png(tmp_path / "a.png", bits, 2, np.where(DRAWN[..., None], 0, ground), ground)
    assert np.array_equal(seen(tmp_path / "a.png"), EXPECTED)


def ramp(top):
    """Values from 0 to `top`, int64 (8, 8), and what they are in 8 bits where 65535 is white."""
    values = np.linspace(0, top, 64).round().astype(np.int64).reshape(8, 8)
    return values, np.repeat((values / 257).round().astype(np.uint8)[None], 3, 0)


@pytest.mark.parametrize("name, kind", [("a.png", "<u2"), ("a.tif", "<u2"), ("b.tif", ">u2"), ("c.tif", "<i4")])
def test_sixteen_bits_come_out_the_same_from_every_file(tmp_path, name, kind):
    values, wanted = ramp(65535)
    image = Image.fromarray(values.astype(kind))
    image.save(tmp_path / name)
    assert Image.open(tmp_path / name).mode == {"a.png": "I;16", "b.tif": "I;16B", "c.tif": "I"}.get(name, "I;16")
    assert np.array_equal(seen(tmp_path / name), wanted) and wanted.max() == 255


def test_a_file_that_tells_its_range_is_stretched_to_it(tmp_path):
    values, _ = ramp(4095)
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 4095\n" + values.astype(">u2").tobytes())
    assert np.array_equal(seen(tmp_path / "a.pgm")[0], (values * 255 / 4095).round())


@pytest.mark.parametrize(
    "values, mode, name",
    [
        (np.linspace(0, 1, 64, dtype=np.float32), "F", "a.tif"),
        (np.linspace(-3, 900, 64, dtype=np.float32), "F", "a.tif"),
        (np.arange(64, dtype=np.float32), "F", "a.pfm"),
        (np.arange(64, dtype=np.int32) + 65_500, "I", "a.tif"),
        (np.arange(64, dtype=np.int32) - 1, "I", "a.tif"),
    ],
)
def test_values_without_a_known_range_are_the_users_to_mend(tmp_path, values, mode, name):
    folder_of(tmp_path, train=300)
    bad = tmp_path / "train" / "bee" / name
    Image.fromarray(values.reshape(8, 8)).save(bad)
    with pytest.raises(InputError, match=f"{bad}: mode {mode}, .*; .*save it with 8 bits") as error:
        datasets.load(study_of(tmp_path))
    assert "\n" not in str(error.value)
    bad.unlink()
    assert len(datasets.load(study_of(tmp_path)).train) == 300


def test_signed_sixteen_bits_below_zero_are_an_error(tmp_path):
    tags = [(256, 3, 8), (257, 3, 8), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 146), (277, 3, 1), (278, 3, 8),
            (279, 4, 128), (339, 3, 2), (282, 3, 1)]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(tags))
    (tmp_path / "a.tif").write_bytes(head + entries + bytes(4) + np.arange(-9, 55, dtype="<i2").tobytes())
    with pytest.raises(InputError, match="a.tif: mode I, -9 to 54"):
        seen(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "top, mode, highest",
    [
        (4095, "I;16", 16),
        (255, "I;16", 1),
        (1023, "I", 4),
        (4095, "RGB", 15),
        (65535, "I;16", 255),
        (65535, "RGB", 255),
    ],
)
def test_values_that_fill_a_tenth_of_their_range_are_told(tmp_path, top, mode, highest):
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            values, file = ramp(top)[0], tmp_path / part / name / "1.png"
            if mode == "RGB":
                png(file, 16, 2, np.repeat(values[..., None], 3, 2))
            elif mode == "I":
                Image.fromarray(values.astype(np.int32)).save(file.with_suffix(".tif"))
            else:
                Image.fromarray(values.astype(np.uint16)).save(file)
    study = study_of(tmp_path, image_size=8, resize=8)
    datasets.load(study)
    said = [line for line in datasets.notes(study) if "levels" in line]
    assert prepare.meta(datasets.prepared(study))["test"]["levels"] == [0, highest]
    assert len(said) == (2 if top < 65535 else 0)
    assert all(f"only levels 0 to {highest} of 0..255 occur" in line for line in said)


def test_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = dict(save_all=True, append_images=frames[1:])
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        frames[0].save(tmp_path / name, **options | ({"lossless": True} if name == "a.webp" else {}))
        assert Image.open(tmp_path / name).n_frames == 3
        assert (seen(tmp_path / name) == np.array([255, 0, 0])[:, None, None]).all()


@pytest.mark.parametrize("name", ["a.gif", "a.jfif", "a.JPE", "a.jp2", "a.avif", "a.tga", "a.ico"])
def test_other_kinds_are_read_where_pillow_can(tmp_path, name):
    if name == "a.avif" and not features.check("avif") or name == "a.jp2" and not features.check("jpg_2000"):
        pytest.skip("this Pillow reads no such file")
    folder_of(tmp_path)
    image = paint(tmp_path / "train" / "ant" / name, (32, 32))
    found = datasets.load(study_of(tmp_path, image_size=32, resize=32))
    assert len(found.train) == 7
    ours = [found.train.images[k] for k, label in enumerate(found.train.labels) if label == 0][-1].astype(int)
    assert np.abs(ours - np.asarray(image.convert("RGB")).transpose(2, 0, 1)).mean() < 12  # GIF has 256 colours
