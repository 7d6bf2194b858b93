import sys
import warnings

import pytest

from s2fpn_lib.data import DatasetNotFound, open_dataset

open_module = sys.modules[open_dataset.__module__]


def test_choice_of_drives(camvid_tree):
    def names(split):
        return open_dataset("camvid", camvid_tree, split, cache=False).names

    everything = names("trainval")
    assert names("trainval:drive=0006R0") == ["0006R0_000001", "0006R0_000002"]
    assert names("trainval:drive!=0016E5") == [name for name in everything if not name.startswith("0016E5")]
    assert names("trainval:drive=0006R0+0016E5") == [name for name in everything if not name.startswith("0001TP")]
    assert names("trainval:drive!=0006R0+drive!=0016E5") == ["0001TP_000001", "0001TP_000002"]


def test_a_filtered_dataset_keeps_names_and_drives_together(camvid_tree):
    dataset = open_dataset("camvid", camvid_tree, "trainval:drive!=0006R0")
    whole = open_dataset("camvid", camvid_tree, "trainval", cache=False)
    assert dataset.split == "trainval:drive!=0006R0"
    for index, name in enumerate(dataset.names):
        assert dataset.drives[index] == name.split("_")[0]
        assert (dataset[index][0] == whole[whole.names.index(name)][0]).all()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("training", "unknown split 'training'"),
        ("train:drive=0005VD", "no drive 0005VD; train has 0001TP, 0006R0, 0016E5"),
        ("val:drive!=0016E5", "leaves no sample"),
        ("train:city=aachen", "write the choice as drive=A"),
        ("train:drive=", "write the choice as drive=A"),
    ],
)
def test_wrong_splits_say_what_is_wrong(camvid_tree, split, message):
    with pytest.raises(ValueError, match=message):
        open_dataset("camvid", camvid_tree, split, cache=False)


def test_root_comes_from_the_environment(camvid_tree, monkeypatch):
    monkeypatch.setenv("S2FPN_DATA", str(camvid_tree))
    assert len(open_dataset("camvid")) == 6
    assert open_dataset("auto", split="val").name == "camvid"


def test_auto_without_camvid_is_roadscenes(tmp_path, monkeypatch):
    monkeypatch.delenv("S2FPN_DATA", raising=False)
    monkeypatch.setattr(open_module, "PROJECT_DATA", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = open_dataset("auto", split="val", cache=False)
    assert dataset.name == "roadscenes"
    image, label = dataset[0]
    assert image.shape[1:] == label.shape == dataset.protocol.size


def test_auto_says_so_where_a_folder_was_named_or_camvid_lacks_the_split(camvid_tree, tmp_path, monkeypatch):
    monkeypatch.setenv("S2FPN_DATA", str(tmp_path / "typo"))
    with pytest.warns(UserWarning, match=r"RoadScenes is used instead of CamVid: .*typo/camvid"):
        assert open_dataset("auto", cache=False).name == "roadscenes"
    monkeypatch.delenv("S2FPN_DATA")
    monkeypatch.setattr(open_module, "PROJECT_DATA", camvid_tree)
    (camvid_tree / "camvid" / "test").rename(camvid_tree / "hidden")
    with pytest.warns(UserWarning, match=r"the test split of camvid has no images"):
        assert open_dataset("auto", split="test", cache=False).name == "roadscenes"


@pytest.mark.parametrize("name", ["camvid", "cityscapes"])
def test_a_missing_dataset_says_where_it_looked_and_what_to_do(tmp_path, name):
    with pytest.raises(DatasetNotFound) as caught:
        open_dataset(name, tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert "data/README.md" in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="camvid-11-720x960, camvid-11exact-720x960, cityscapes, roadscenes"):
        open_dataset("kitti", tmp_path)
