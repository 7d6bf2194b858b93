"""The audit of a dataset, and class weights against the published formula."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2fpn_lib.data import (
    DatasetError,
    SegmentationDataset,
    Subset,
    check_dataset,
    drive_overlap,
    get_protocol,
    open_dataset,
)
from s2fpn_lib.data import files as files_module
from s2fpn_lib.data.files import Cityscapes
from s2fpn_lib.data.statistics import AuditReport, class_pixels, class_weights_from, label_counts, require_scored
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.model import build_model

PROJECT = Path(__file__).resolve().parents[2]


def spoil(folder, kind):
    """Breaks the val split in one way; returns the file that must be named."""
    image, label = folder / "val" / "0016E5_000004.png", folder / "valannot" / "0016E5_000004.png"
    if kind == "undeclared id":
        ids = np.array(Image.open(label))
        ids[3, 5] = 40
        Image.fromarray(ids).save(label)
        return label
    if kind == "size mismatch":
        Image.fromarray(np.zeros((24, 30), dtype=np.uint8)).save(label)
        return label
    if kind == "truncated image":
        os.truncate(image, image.stat().st_size // 2)
        return image
    if kind == "truncated label":
        os.truncate(label, label.stat().st_size // 2)
        return label
    if kind == "not an image":
        image.write_text("hello")
        return image
    if kind == "missing label":
        label.unlink()
        return label
    image.unlink()  # "missing image": without a list file only the label is left to tell
    return label


KINDS = (
    "undeclared id",
    "size mismatch",
    "truncated image",
    "truncated label",
    "not an image",
    "missing label",
    "missing image",
)


@pytest.mark.filterwarnings("ignore:No cache")
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_broken_file_is_named(camvid_tree, kind, cache):
    broken = spoil(camvid_tree / "camvid", kind)
    for split in ("val", "trainval", "trainval:drive=0016E5"):
        report = check_dataset(open_dataset("camvid", camvid_tree, split, cache=cache))
        assert len(report.errors) == 1
        assert report.errors[0].startswith(f"{broken}: ")
        with pytest.raises(DatasetError, match=broken.name):
            report.raise_for_errors()
    check_dataset(open_dataset("camvid", camvid_tree, "train", cache=cache)).raise_for_errors()


@pytest.mark.filterwarnings("ignore:No cache")
def test_all_broken_files_are_named_at_once(camvid_tree):
    folder = camvid_tree / "camvid"
    broken = [folder / "train" / "0001TP_000001.png", folder / "trainannot" / "0006R0_000002.png"]
    for path in broken:
        os.truncate(path, 60)
    report = check_dataset(open_dataset("camvid", camvid_tree, "train"))
    assert [error.split(": ")[0] for error in report.errors] == [str(path) for path in broken]
    assert report.sizes.count(None) == 2
    assert "2 errors" in str(report)


@pytest.mark.filterwarnings("ignore:No cache")
def test_a_subset_without_the_broken_files_is_counted_without_reading_them(camvid_tree):
    spoil(camvid_tree / "camvid", "truncated label")
    dataset = open_dataset("camvid", camvid_tree, "val")
    sizes = check_dataset(dataset).sizes
    readable = Subset([(dataset, index) for index, size in enumerate(sizes) if size], "val", like=dataset)
    assert [index for _, index in readable.items] == [0, 2]
    labels = [label.reshape(-1).numpy() for _, label in readable]
    assert np.array_equal(label_counts(readable), [np.bincount(label, minlength=256) for label in labels])


@pytest.mark.filterwarnings("ignore:No cache")
def test_the_notebook_shows_the_readable_images_and_stops_at_the_broken_file(camvid_tree, tmp_path, monkeypatch):
    broken = spoil(camvid_tree / "camvid", "truncated label")
    monkeypatch.setattr("s2fpn_lib.workbench.parameters.checked_parameters", dict)
    parameters = {"root": str(camvid_tree), "splits": "val", "images": 2, "results": str(tmp_path / "results")}
    with pytest.raises(DatasetError, match=rf"{broken.name}: cannot be decoded"):
        run_data_notebook(parameters)
    assert broken.name in (tmp_path / "results" / "01_data" / "errors.txt").read_text()


def test_a_file_named_in_a_list_but_missing(camvid_tree):
    listing = camvid_tree / "camvid" / "val.txt"
    listing.write_text("val/0016E5_000003.png valannot/0016E5_000003.png\nval/gone.png valannot/gone.png\n")
    report = check_dataset(open_dataset("camvid", camvid_tree, "val", cache=False))
    assert report.errors == [f"{camvid_tree / 'camvid' / 'val' / 'gone.png'}: file is missing"]


def test_many_errors_are_grouped_with_a_likely_cause(tmp_path, monkeypatch):
    """Cityscapes with a list that asks for trainIds in the backslashes of Windows, while labelIds are there."""
    monkeypatch.setattr(Cityscapes, "protocol", replace(Cityscapes.protocol, size=(8, 16)))
    folder, lines = tmp_path / "cityscapes", []
    for number in range(12):
        city = f"city{number % 4}"
        name = f"{city}_{number:06d}_000019"
        image = folder / "leftImg8bit" / "train" / city / f"{name}_leftImg8bit.png"
        label = folder / "gtFine" / "train" / city / f"{name}_gtFine_labelIds.png"
        for path, mode in ((image, "RGB"), (label, "L")):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (16, 8), 7 if mode == "L" else 0).save(path)
        words = [str(path.relative_to(folder)).replace("/", "\\") for path in (image, label)]
        lines.append(" ".join(words).replace("labelIds", "labelTrainIds"))
    (folder / "train.txt").write_text("\n".join(lines))
    report = check_dataset(open_dataset("cityscapes", tmp_path, cache=False))
    assert len(report.errors) == 12
    with pytest.raises(DatasetError) as caught:
        report.raise_for_errors()
    text = str(caught.value).splitlines()
    assert text[0] == "cityscapes train has 12 errors; fix or remove the files:"
    assert text[1] == f"  12 errors of one kind in {folder / 'gtFine' / 'train'}, for example:"
    assert text[2:7] == [f"  {error}" for error in sorted(report.errors)[:5]]
    assert text[7].startswith("  Likely cause: city0_000000_000019_gtFine_labelIds.png in the same folder")
    assert len(text) == 8
    (folder / "train.txt").unlink()
    check_dataset(open_dataset("cityscapes", tmp_path, cache=False)).raise_for_errors()


@pytest.mark.parametrize(
    ("present", "missing", "cause"),
    [
        ("val/a.jpg", "val/a.png", "a.jpg in the same folder: the list asks for another kind of file"),
        ("val/A.png", "val/a.png", "holds A.png, not a.png; lists made on Windows"),
        ("val\\a.png", "val/a.png", "holds the file val\\\\a.png: its archive was made on Windows"),
        ("val/a.png", "gtFine/a.png", "there is no folder .*gtFine: unpack the archive"),
        ("val/a.png", "C:/data/a.png", r"absolute Windows paths \(C:"),
        ("val/0001TP_000030.png", "val/0001TP_000060.png", "$"),
    ],
)
def test_likely_causes_of_missing_files(tmp_path, present, missing, cause):
    (tmp_path / present).parent.mkdir(exist_ok=True)
    (tmp_path / present).touch()
    report = AuditReport(Labeled([[0]]), [None], np.zeros((1, 256)), [f"{tmp_path / missing}: file is missing"])
    text = "\n".join(report.explained())
    assert re.search(rf"missing\nLikely cause: .*{cause}" if cause != "$" else "missing$", text)


def test_kinds_and_folders_of_errors_are_apart(tmp_path):
    errors = [f"/d/train/{i}.png: label is {i}x2 but its image {i}.png is 3x3" for i in range(7)]
    errors += [f"/d/val/{i}.png: cannot be decoded (cut off in '/d/val/{i}.png')" for i in range(3)]
    errors += [f"/d/train/{i}.png: cannot be decoded (cut off in '/d/train/{i}.png')" for i in range(6)]
    lines = AuditReport(Labeled([[0]]), [None], np.zeros((1, 256)), errors).explained()
    assert [line for line in lines if "of one kind" in line] == [
        "7 errors of one kind in /d/train, for example:",
        "6 errors of one kind in /d/train, for example:",
    ]
    assert len(lines) == 2 + 5 + 3 + 5


def test_a_split_without_a_scored_pixel_is_an_error_of_audit_and_evaluation():
    dataset = Labeled([[11, 11]], [[11, 11]])
    message = "camvid train: all pixels of all labels are ignored"
    with pytest.raises(DatasetError, match=message):
        check_dataset(dataset).raise_for_errors()
    with pytest.raises(DatasetError, match=message):
        evaluate(build_model("s2fpn_lite", num_classes=11), dataset, progress=False)
    require_scored(Labeled([[11, 11]], [[11, 3]]))


def test_the_labels_of_cityscapes_test_are_not_public(tmp_path, monkeypatch):
    monkeypatch.setattr(Cityscapes, "protocol", replace(Cityscapes.protocol, size=(32, 64)))
    for place, mode in (
        ("leftImg8bit/test/berlin/b_leftImg8bit", "RGB"),
        ("gtFine/test/berlin/b_gtFine_labelIds", "L"),
    ):
        path = tmp_path / "cityscapes" / f"{place}.png"
        path.parent.mkdir(parents=True)
        Image.new(mode, (64, 32)).save(path)
    dataset = open_dataset("cityscapes", tmp_path, "test")
    with pytest.raises(DatasetError, match=r"labels of this split are not public.*13_predict.*label_ids"):
        evaluate(build_model("s2fpn_lite", num_classes=19), dataset, progress=False)


@pytest.mark.filterwarnings("ignore:No cache")
def test_the_notebook_reports_a_split_of_which_nothing_can_be_read(camvid_tree, tmp_path, monkeypatch):
    for path in (camvid_tree / "camvid" / "valannot").iterdir():
        path.write_text("no image")
    monkeypatch.setattr("s2fpn_lib.workbench.parameters.checked_parameters", dict)
    with pytest.raises(DatasetError, match=r"camvid val has 3 errors[^$]*cannot be decoded"):
        run_data_notebook({"root": str(camvid_tree), "splits": "train val", "results": str(tmp_path)})
    assert len((tmp_path / "01_data" / "errors.txt").read_text().splitlines()) == 3


def run_data_notebook(parameters):
    """Runs the cells of 01_data here."""
    variables = {}
    notebook = json.loads((PROJECT / "notebooks" / "01_data.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), variables)
            if "parameters" in cell["metadata"].get("tags", []):
                variables.update(parameters)


def test_a_sample_listed_twice(camvid_tree):
    (camvid_tree / "camvid" / "val.txt").write_text("val/0016E5_000003.png\n" * 2)
    report = check_dataset(open_dataset("camvid", camvid_tree, "val", cache=False))
    assert "occurs more than once" in report.errors[0]


def test_tables_against_counting_by_hand(camvid_tree):
    dataset = open_dataset("camvid", camvid_tree, "train", cache=False)
    labels = np.stack([label.numpy() for _, label in dataset])
    table = check_dataset(dataset).class_table().set_index("id")
    assert table.index.tolist() == list(range(12))
    for class_id in range(12):
        assert table.loc[class_id, "pixels"] == (labels == class_id).sum()
        assert table.loc[class_id, "samples"] == (labels == class_id).any(axis=(1, 2)).sum()
    shares = [(labels == class_id).sum() / (labels < 11).sum() for class_id in range(11)]
    assert np.allclose(table["share"][:11], shares)
    assert np.isnan(table.loc[11, "share"])
    assert check_dataset(dataset).sizes == [(24, 32)] * 6


def test_the_cache_answers_without_decoding(camvid_tree, monkeypatch):
    direct = open_dataset("camvid", camvid_tree, "trainval:drive=0016E5", cache=False)
    expected, counts = check_dataset(direct), label_counts(direct)
    dataset = open_dataset("camvid", camvid_tree, "trainval:drive=0016E5")
    monkeypatch.setattr(files_module, "read_image", lambda *_: pytest.fail("decoded again"))
    report = check_dataset(dataset)
    assert np.array_equal(report.counts, expected.counts)
    assert np.array_equal(label_counts(dataset), counts)
    assert report.sizes == expected.sizes


def test_drive_overlap(camvid_tree):
    reports = [check_dataset(open_dataset("camvid", camvid_tree, split)) for split in ("train", "val", "test")]
    table = drive_overlap(*reports)
    assert table.loc["0016E5"].tolist() == [2, 3, 0, True]
    assert table.loc["0006R0"].tolist() == [2, 0, 0, False]
    assert table.loc["Seq05VD"].tolist() == [0, 0, 1, False]


def test_real_camvid_has_no_errors(camvid_root):
    report = check_dataset(open_dataset("camvid", camvid_root, "val", cache=False)).raise_for_errors()
    assert set(report.sizes) == {(360, 480)}
    assert report.counts.sum() == 101 * 360 * 480


class Labeled(SegmentationDataset):
    """Labels given as arrays, with black images."""

    split, protocol = "train", get_protocol("camvid-segnet-360x480")

    def __init__(self, *labels: list[list[int]]):
        self.labels = [np.array(label, dtype=np.uint8) for label in labels]
        self.names = self.drives = [f"sample{i}" for i in range(len(labels))]

    def arrays(self, index):
        label = self.labels[index]
        return np.zeros((*label.shape, 3), dtype=np.uint8), label


def test_class_weights_are_the_published_formula_over_labeled_pixels():
    dataset = Labeled([[0, 0, 11], [1, 11, 11]], [[0, 2, 2], [2, 2, 11]])  # 3 x class 0, 1 x 1, 4 x 2, 4 ignored
    assert class_pixels(dataset).tolist() == [3, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0]
    expected = [1 / math.log(1.10 + share) for share in (3 / 8, 1 / 8, 4 / 8)] + [1 / math.log(1.10)] * 8
    assert class_weights_from(dataset).tolist() == pytest.approx(expected, rel=1e-6)
    assert class_weights_from(dataset, 1.5)[3].item() == pytest.approx(1 / math.log(1.5), rel=1e-6)


def test_class_weights_of_invalid_labels_and_constants():
    with pytest.raises(ValueError, match=r"sample1: label holds 12 \(1 px\)"):
        class_weights_from(Labeled([[0]], [[12]]))
    with pytest.raises(ValueError, match="a number above 1"):
        class_weights_from(Labeled([[0]]), 1.0)
    with pytest.raises(ValueError, match="no pixel"):
        class_weights_from(Labeled([[11]]))
