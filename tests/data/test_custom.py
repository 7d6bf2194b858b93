"""Own datasets: the YAML description, pairing, ids, palettes, colors, sizes, and the errors that name file and fix."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2fpn_lib.data import DatasetError, DatasetNotFound, check_dataset, get_protocol, open_dataset
from s2fpn_lib.data.custom import CustomDataset
from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.runs import PROJECT
from tests.loading import load_file

COLORS = {"floor": (10, 20, 30), "rack": (200, 100, 0), "person": (0, 255, 90)}


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    return load_file(PROJECT / "examples" / "make_own_data.py").make(tmp_path_factory.mktemp("street"), size=(48, 64))


def write(folder: Path, ids: np.ndarray, save=None, description: str = "", name: str = "a") -> Path:
    """One image and label in `folder`, described by data.yaml with the given lines instead of the plain classes."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    height, width = ids.shape[:2]
    pixels = np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{name}.png")
    (save or (lambda path: Image.fromarray(ids).save(path)))(folder / "masks" / f"{name}.png")
    lines = "name: warehouse\nsize: [32, 40]\nsplits: {train: {images: images, labels: masks}}\n"
    path = folder / "data.yaml"
    path.write_text(lines + (description or "classes: [floor, rack, person]\n"))
    return path


def some_ids(values=(0, 1, 2), size=(32, 40)) -> np.ndarray:
    return np.array(values, dtype=np.uint8)[np.arange(size[0] * size[1]).reshape(size) % len(values)]


def label_of(path: Path) -> np.ndarray:
    return open_dataset(path, split="train")[0][1].numpy()


def message_of(path: Path) -> str:
    with pytest.raises(DatasetError) as error:
        check_dataset(open_dataset(path, split="train", cache=False)).raise_for_errors()
    return str(error.value)


def test_the_example_merges_the_classes_of_road_scenes(street):
    data = open_dataset(street, split="train")
    assert (data.name, len(data), data.protocol.classes) == ("street", 12, ("background", "road", "traffic"))
    assert check_dataset(data).raise_for_errors().sizes == [(48, 64)] * 12
    merged = np.array([0, 0, 0, 1, 1, 0, 0, 0, 2, 2, 2, 11])  # by hand, from RoadScenes' ids to the three classes
    scenes = RoadScenes("train", size=(48, 64), count=12)
    by_name = dict(zip(scenes.names, range(12), strict=True))
    for index, name in enumerate(data.names):
        np.testing.assert_array_equal(data[index][1], merged[scenes.arrays(by_name[name])[1]])
    assert set(data.drives) == {"alley", "highway", "park", "suburb", "town"}
    assert get_protocol(data.protocol.name) is data.protocol
    both = open_dataset(street, split="trainval")
    assert len(both) == 18
    assert len(open_dataset(street, split="trainval:drive!=town")) < 18


def test_ids_need_no_label_map(tmp_path):
    ids = some_ids((0, 1, 2, 255))
    path = write(tmp_path, ids, description="classes: [floor, rack, person]\nignore: 255\n")
    np.testing.assert_array_equal(label_of(path), ids)


def test_ids_written_three_times(tmp_path):
    ids = some_ids()
    path = write(tmp_path, ids, lambda path: Image.fromarray(np.repeat(ids[..., None], 3, 2)).save(path))
    np.testing.assert_array_equal(label_of(path), ids)


@pytest.mark.parametrize("palette", [False, True], ids=["rgb", "palette"])
def test_colors(tmp_path, palette):
    """Colors are decoded from RGB files and from palettes alike, whatever the order of the palette."""
    ids = some_ids((0, 1, 2, 3))
    table = np.array([*COLORS.values(), (255, 255, 255)], dtype=np.uint8)

    def save(path):
        if not palette:
            return Image.fromarray(table[ids]).save(path)
        indices = Image.fromarray(3 - ids)
        indices.putpalette(table[::-1].tobytes())
        return indices.save(path)

    classes = "\n".join(f"  {name}: {list(color)}" for name, color in COLORS.items())
    path = write(tmp_path, ids, save, f"classes:\n{classes}\nignore: [255, 255, 255]\n")
    data = open_dataset(path, split="train")
    np.testing.assert_array_equal(data[0][1], np.where(ids == 3, 255, ids))
    assert data.protocol.palette == tuple(COLORS.values())
    assert data.protocol.ignore_color == (255, 255, 255)


def test_colored_classes_with_a_label_map_are_read_as_ids(tmp_path):
    classes = ", ".join(f"{name}: {list(color)}" for name, color in COLORS.items())
    path = write(
        tmp_path,
        some_ids((0, 7, 11)),
        description=f"classes: {{{classes}}}\nlabel_map: {{0: floor, 7: rack, 11: person}}\n",
    )
    np.testing.assert_array_equal(label_of(path), some_ids((0, 1, 2)))


def test_a_label_map_may_ignore_ids_and_the_zero(tmp_path):
    rules = "classes: [rack, person]\nignore: 0\nlabel_map: {7: rack, 11: person, 12: ignore}\n"
    path = write(tmp_path, some_ids((0, 7, 11, 12)), description=rules)
    np.testing.assert_array_equal(label_of(path), some_ids((255, 0, 1, 255)))


def test_an_own_ignore_id_is_kept(tmp_path):
    path = write(tmp_path, some_ids((0, 1, 2, 9)), description="classes: [floor, rack, person]\nignore: 9\n")
    assert open_dataset(path, split="train").protocol.ignore_id == 9
    np.testing.assert_array_equal(label_of(path), some_ids((0, 1, 2, 9)))


def test_unknown_values_are_an_error_or_ignored(tmp_path):
    ids = some_ids((0, 1, 2, 7))
    path = write(tmp_path, ids)
    text = message_of(path)
    for part in ("masks/a.png", "7 (320 pixels)", "`7: <class>`", "`7: ignore`", "unknown: ignore"):
        assert part in text
    path.write_text(path.read_text() + "unknown: ignore\n")
    np.testing.assert_array_equal(label_of(path), np.where(ids == 7, 255, ids))


def test_a_color_near_a_class_color_is_named(tmp_path):
    ids = some_ids()
    damaged = np.array([*COLORS.values()], dtype=np.uint8)[ids]
    damaged[3, 4] = (13, 20, 28)
    classes = "\n".join(f"  {name}: {list(color)}" for name, color in COLORS.items())
    path = write(tmp_path, ids, lambda path: Image.fromarray(damaged).save(path), f"classes:\n{classes}\n")
    text = message_of(path)
    assert all(part in text for part in ("masks/a.png", "(13, 20, 28) in 1 px", "(10, 20, 30) (floor)", "PNG"))


def test_a_color_image_without_colors_in_the_description(tmp_path):
    ids = some_ids()
    path = write(
        tmp_path, ids, lambda path: Image.fromarray(np.array([*COLORS.values()], dtype=np.uint8)[ids]).save(path)
    )
    assert "name: [r, g, b]" in message_of(path)


def test_missing_pairs(tmp_path):
    path = write(tmp_path, some_ids())
    write(tmp_path, some_ids(), name="b")
    write(tmp_path, some_ids(), name="c")
    (tmp_path / "masks" / "b.png").unlink()
    (tmp_path / "images" / "c.png").unlink()
    text = message_of(path)
    assert "masks/b.png" in text
    assert "missing" in text
    assert "masks/c.png: label without an image" in text


def test_a_class_that_no_split_contains(tmp_path):
    path = write(tmp_path, some_ids((0, 1)))
    assert "holds the class 'person'" in message_of(path)
    write(tmp_path / "other", some_ids((0, 2)))
    splits = "{train: {images: images, labels: masks}, val: {images: other/images, labels: other/masks}}"
    path.write_text(path.read_text().replace("{train: {images: images, labels: masks}}", splits))
    assert not check_dataset(open_dataset(path, split="train")).errors


def test_every_size_becomes_the_protocols(tmp_path):
    """An image of twice the size is halved; one of another aspect ratio gets an ignored border."""
    ids = some_ids(size=(64, 80)) * 0 + np.repeat([0, 1], 40).astype(np.uint8)
    path = write(tmp_path, ids, description="classes: [floor, rack]\n")
    image, label = open_dataset(path, split="train")[0]
    assert image.shape == (3, 32, 40)
    np.testing.assert_array_equal(label, np.tile(np.repeat([0, 1], 20), (32, 1)))
    path = write(tmp_path / "tall", np.zeros((64, 40), np.uint8), description="classes: [floor]\n")
    _, label = open_dataset(path, split="train")[0]
    np.testing.assert_array_equal(label, np.tile(np.repeat([255, 0, 255], [10, 20, 10]), (32, 1)))


def test_lists_and_held_out_pairs(tmp_path):
    for name in "abcdef":
        path = write(tmp_path, some_ids(), name=name)
    lines = [f"images\\{name}.png masks\\{name}.png" for name in "abcdef"]  # as written on Windows
    (tmp_path / "train.txt").write_text("# image label\n" + "\n".join(lines))
    path.write_text(
        path.read_text().replace(
            "{train: {images: images, labels: masks}}", "{train: {list: train.txt}, val: {every: 3}}"
        )
    )
    assert open_dataset(path, split="train").names == [f"images/{name}" for name in "bcef"]
    assert open_dataset(path, split="val").names == ["images/a", "images/d"]
    path.write_text(path.read_text().replace("{every: 3}}", "{every: 3}, trial: {list: train.txt}}"))
    assert len(CustomDataset(path, "trial").names) == 6  # a split of its own is not thinned out
    with pytest.raises(DatasetNotFound, match="no split 'test'; it has train, val, trial: add one"):
        open_dataset(path, split="test")
    (tmp_path / "train.txt").write_text("images/a.png\n")
    with pytest.raises(DatasetError, match="line 1: expected `image label`"):
        open_dataset(path, split="train")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: warehouse", "names: warehouse", "unknown field 'names'. Did you mean 'name'"),
        ("size: [32, 40]", "size: 32", "size is 32"),
        ("size: [32, 40]\n", "", "size missing"),
        ("[floor, rack, person]", "[floor, yes, person]", "in quotes"),
        ("[floor, rack, person]", "[floor, rack, rack]", "different names"),
        ("classes: ", "label_map: {0: flor}\nclasses: ", "'flor', which `classes` does not name. Did you mean 'floor'"),
        ("classes: ", "ignore: 0\nclasses: ", "ignore is 0, which is also the id of floor"),
        ("labels: masks", "label: masks", "give {images: folder, labels: folder}"),
        ("labels: masks", "labels: mask", "mask: the labels folder"),
        ("labels: masks", "labels: masks, label_suffix: _m", "whose name ends in '_m'"),
        ("name: warehouse", "name: [", "cannot be read as YAML"),
        ("name: warehouse", "name: camvid", "no name of a built-in dataset"),
        ("[floor, rack, person]", "[floor, picture, person]", "none of height, ignore, picture"),
        ("classes: ", "recording: '['\nclasses: ", "is no pattern"),
        ("classes: ", "label_map: {0: floor, 1: rack, 1: person}\nclasses: ", "1 occurs more than once"),
        ("{images: images, labels: masks}}", "{images: images, labels: masks}, val: {every: 2}}", "no pair is left"),
        ("[floor, rack, person]", "{floor: [1, 2, 3], rack: [1, 2, 3]}", "give each another color"),
        ("[floor, rack, person]", "{floor: [1, 2, 3], rack: [1, 2, 300]}", "of 0 to 255"),
    ],
)
def test_errors_of_the_description_name_the_field(tmp_path, old, new, expected):
    path = write(tmp_path, some_ids())
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises((DatasetError, DatasetNotFound)) as error:
        open_dataset(path, split="train")
    assert expected in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_other_rules_are_another_protocol(tmp_path):
    path = write(tmp_path, some_ids())
    first = open_dataset(path, split="train")
    path.write_text(path.read_text().replace("[floor, rack, person]", "[rack, floor, person]"))
    second = open_dataset(path, split="train")
    assert first.protocol.name != second.protocol.name
    assert first.digest() != second.digest()
    assert first[0][1].equal(second[0][1])  # the same ids, with other names


def test_the_digest_follows_the_content(tmp_path):
    path = write(tmp_path, some_ids())
    before = open_dataset(path, split="train").digest()
    assert before == open_dataset(path, split="train", cache=False).digest()
    image = np.array(Image.open(tmp_path / "images" / "a.png"))
    image[5, 5, 0] ^= 1
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    assert open_dataset(path, split="train").digest() != before


def test_a_label_map_makes_the_same_files_another_protocol(tmp_path):
    """Palette labels are read as colors without a label_map and as indices with one."""
    ids = some_ids()
    table = np.array([*COLORS.values()], dtype=np.uint8)

    def save(path):
        image = Image.fromarray(2 - ids)
        image.putpalette(table[::-1].tobytes())
        image.save(path)

    classes = ", ".join(f"{name}: {list(color)}" for name, color in COLORS.items())
    path = write(tmp_path, ids, save, f"classes: {{{classes}}}\n")
    before = open_dataset(path, split="train")
    np.testing.assert_array_equal(before[0][1], ids)
    path.write_text(path.read_text() + "label_map: {0: floor, 1: rack, 2: person}\n")
    after = open_dataset(path, split="train")
    np.testing.assert_array_equal(after[0][1], 2 - ids)
    assert before.protocol.name != after.protocol.name


def test_a_gray_label_among_colors_is_refused_where_it_is_ambiguous(tmp_path):
    classes = "classes: {road: [128, 64, 128], background: [0, 0, 0]}\n"
    path = write(tmp_path, np.zeros((32, 40), np.uint8), description=classes)
    assert "save it in RGB" in message_of(path)


@pytest.mark.parametrize("bits", [2, 4])
def test_ids_of_few_bits_are_not_stretched(tmp_path, bits):
    ids = some_ids((0, 1, 2, 3))
    rows = np.packbits(((ids[..., None] >> np.arange(bits)[::-1]) & 1).reshape(len(ids), -1), axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def save(path):
        header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
        data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))

    path = write(tmp_path, ids, save, "classes: [a, b, c, d]\n")
    np.testing.assert_array_equal(label_of(path), ids)


def test_names_stay_inside_and_hidden_files_do_not_count(tmp_path):
    path = write(tmp_path / "set", some_ids())
    (tmp_path / "set" / "images" / "._a.png").write_bytes(b"of macOS")
    assert open_dataset(path, split="train").names == ["a"]
    (tmp_path / "set" / "train.txt").write_text("../set/images/a.png ../set/masks/a.png\n")
    path.write_text(path.read_text().replace("{images: images, labels: masks}", "{list: train.txt}"))
    assert open_dataset(path, split="train").names == ["set/images/a"]
