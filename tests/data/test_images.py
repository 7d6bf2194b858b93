import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.data import DatasetError, get_protocol, open_dataset
from s2fpn_lib.data.images import ImageError, ids_of_colors, read_colors, read_ids, read_image, read_label
from s2fpn_lib.model import build_model
from s2fpn_lib.workbench.predict import predict


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3)])
def test_exif_orientation(tmp_path, pixels, name, orientation, turns):
    image = Image.fromarray(pixels[:3, :5]).resize((20, 12))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif, quality=95)
    image.save(tmp_path / f"plain_{name}", quality=95)
    upright = np.asarray(Image.open(tmp_path / f"plain_{name}"))
    assert np.array_equal(read_image(tmp_path / name), np.rot90(upright, turns))
    assert np.array_equal(read_label(tmp_path / name), np.rot90(upright, turns))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grayscale_is_scaled_by_its_depth(tmp_path, suffix):
    gray = np.linspace(0, 65535, 240).round().astype(np.uint16).reshape(12, 20)
    Image.fromarray(gray).save(tmp_path / f"a.{suffix}")
    expected = (gray / 257).round().astype(np.uint8)
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), np.stack([expected] * 3, axis=2))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1"])
def test_every_mode_becomes_rgb(tmp_path, pixels, mode):
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


def test_labels_hold_ids_or_colors(tmp_path, pixels):
    ids = pixels[..., 0] % 12
    palette = Image.fromarray(ids, mode="P")
    palette.putpalette(list(range(0, 255)) + [0] * 513)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(ids).save(tmp_path / "gray.png")
    Image.fromarray(ids.astype(np.uint16)).save(tmp_path / "deep.png")
    for name in ("palette.png", "gray.png", "deep.png"):
        found = read_ids(tmp_path / name)
        assert np.array_equal(found, ids)
        assert found.dtype == np.uint8
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "color.png")
    assert np.array_equal(read_label(tmp_path / "color.png"), pixels)
    with pytest.raises(ImageError, match=r"color.png: expected one channel of class ids"):
        read_ids(tmp_path / "color.png")


def test_16_bit_ids_beyond_8_bits_are_an_error(tmp_path):
    Image.fromarray(np.array([[0, 300]], dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ImageError, match=r"deep.png: class ids run from 0 to 300"):
        read_label(tmp_path / "deep.png")


def test_unreadable_files_are_named(tmp_path, pixels):
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    reasons = {"text.png": "decoded", "cut.png": "decoded", "float.tif": "8 or 16 bits", "absent.png": "missing"}
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=rf"{name}: .*{reason}"):
            read_image(tmp_path / name)


def test_a_dataset_reads_rotated_and_16_bit_files(camvid_tree):
    """An image and a label that both state a rotation by 180 degrees, and a 16-bit image with a 16-bit label."""
    folder = camvid_tree / "camvid"
    upright = open_dataset("camvid", camvid_tree, "val", cache=False)
    image, label = (array.copy() for array in upright.arrays(0))
    exif = Image.new("L", (1, 1)).getexif()
    exif[0x0112] = 3
    sample, deep = upright.samples[0], upright.samples[1]
    Image.fromarray(image[::-1, ::-1]).save(sample.image, exif=exif)
    Image.fromarray(label[::-1, ::-1]).save(sample.label, exif=exif)
    gray = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 85
    Image.fromarray(gray).save(deep.image)
    Image.fromarray(label.astype(np.uint16)).save(deep.label)
    dataset = open_dataset("camvid", camvid_tree, "val")
    assert np.array_equal(dataset.arrays(0)[0], image)
    assert np.array_equal(dataset.arrays(0)[1], label)
    assert np.array_equal(dataset.arrays(1)[0][..., 2], (gray / 257).round())
    assert np.array_equal(dataset.arrays(1)[1], label)
    Image.fromarray(label.astype(np.uint16) + 300).save(folder / "valannot" / deep.label.name)
    with pytest.raises(DatasetError, match=rf"{deep.label.name}: class ids run"):
        open_dataset("camvid", camvid_tree, "val", cache=False).arrays(1)


def test_prediction_reads_pictures_as_datasets_do(tmp_path):
    """JPEG files turned by 90 and 180 degrees, and 16-bit grayscale, predict as the upright 8-bit pictures."""
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48))
    exif = picture.getexif()
    for orientation, turn in {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}.items():
        exif[0x0112] = orientation
        turned = picture.transpose(turn)
        (tmp_path / "jpeg").mkdir(exist_ok=True)
        turned.save(tmp_path / "jpeg" / f"turned_{orientation}.jpg", exif=exif)
        upright = Image.open(tmp_path / "jpeg" / f"turned_{orientation}.jpg")
        (tmp_path / "png").mkdir(exist_ok=True)
        back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}[orientation]
        upright.transpose(back).save(tmp_path / "png" / f"turned_{orientation}.png", exif=Image.Exif())
    gray = np.asarray(picture.convert("L"))
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "jpeg" / "gray.png")
    Image.fromarray(gray).save(tmp_path / "png" / "gray.png")
    torch.manual_seed(0)
    model, protocol = build_model("s2fpn_lite", num_classes=11).eval(), get_protocol("camvid-segnet-360x480")
    for kind in ("jpeg", "png"):
        predict(model, tmp_path / kind, tmp_path / f"{kind}_out", protocol, size="own")
    for name in ("turned_3.png", "turned_6.png", "gray.png"):
        found, expected = (read_ids(tmp_path / f"{kind}_out" / "train_ids" / name) for kind in ("jpeg", "png"))
        assert found.shape == (48, 64)
        assert np.array_equal(found, expected)
        assert len(np.unique(found)) > 1


COLORS = {(128, 64, 128): 3, (0, 0, 192): 4, (0, 0, 0): 11}


def test_colors_become_ids():
    ids = np.random.default_rng(0).choice([3, 4, 11], (12, 20)).astype(np.uint8)
    color_of = {value: color for color, value in COLORS.items()}
    pixels = np.array([[color_of[value] for value in row] for row in ids.tolist()], dtype=np.uint8)
    found = ids_of_colors(pixels, COLORS, "a.png")
    assert found.dtype == np.uint8
    assert np.array_equal(found, ids)


def test_unknown_colors_are_counted_and_compared_with_the_known_ones():
    pixels = np.zeros((12, 20, 3), dtype=np.uint8)
    pixels[0, :7] = (126, 66, 129)
    pixels[1, 0] = (1, 250, 3)
    classes = ("Sky", "Building", "Pole", "Road")
    message = (
        r"a_L.png: holds colors of no class: \(126, 66, 129\) in 7 px, near \(128, 64, 128\) \(Road\); "
        r"\(1, 250, 3\) in 1 px\. .*JPEG compression.*export the label again"
    )
    with pytest.raises(ImageError, match=message):
        ids_of_colors(pixels, COLORS, "a_L.png", classes)
    with pytest.raises(ImageError, match=r"no class: \(126, 66, 129\) in 7 px, near \(128, 64, 128\) \(Road\)\. "):
        ids_of_colors(pixels, COLORS, "a_L.png", classes, unknown=11)  # a damaged color is not just another one
    pixels[0, :7] = 0
    assert ids_of_colors(pixels, COLORS, "a_L.png", unknown=7)[1, 0] == 7
    with pytest.raises(ImageError, match=r"\(1, 250, 3\) in 1 px\. Correct these pixels"):
        ids_of_colors(pixels, COLORS, "a_L.png", classes)


def test_colors_of_a_palette_are_read_and_ids_are_not_colors(tmp_path, pixels):
    palette = Image.fromarray(pixels[..., 0] % 3, mode="P")
    palette.putpalette([128, 64, 128, 0, 0, 192, 0, 0, 0])
    palette.save(tmp_path / "palette.png")
    found = ids_of_colors(read_colors(tmp_path / "palette.png"), COLORS, "palette.png")
    assert np.array_equal(found, np.array([3, 4, 11])[pixels[..., 0] % 3])
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.png")
    with pytest.raises(ImageError, match=r"gray.png: expected a label in colors"):
        read_colors(tmp_path / "gray.png")
