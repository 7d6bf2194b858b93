import numpy as np
import pytest
from PIL import Image

from s2fpn_lib.data import DatasetError, DatasetNotFound, open_dataset
from s2fpn_lib.data.cityscapes import to_label_ids

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
def tree(tmp_path):
    """Three train pairs of 16x32 pixels, labels of all three kinds; returns the folder and the label ids by name."""
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


def test_a_list_that_is_no_list(tree):
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
    with pytest.raises(DatasetError, match=r"a.png: expected \*_labelIds.png"):
        open_dataset("cityscapes", folder, cache=False)[0]


def test_a_color_of_no_class_is_an_error_that_names_the_file(tree):
    folder, _ = tree
    for other in folder.glob("gtFine/train/*/*Ids.png"):
        other.unlink()
    path = folder / "gtFine" / "train" / "aachen" / f"{stem('aachen', 0)}_gtFine_color.png"
    Image.fromarray(np.full((16, 32, 3), 7, dtype=np.uint8)).save(path)
    dataset = open_dataset("cityscapes", folder, cache=False)
    with pytest.raises(DatasetError, match=rf"{path.name}.*#070707"):
        dataset[0]


def test_no_labels_at_all(tree):
    folder, _ = tree
    for path in folder.glob("gtFine/train/*/*.png"):
        path.unlink()
    with pytest.raises(DatasetNotFound, match="no labels"):
        open_dataset("cityscapes", folder, cache=False)
