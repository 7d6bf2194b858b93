"""Files that 13_predict leaves: right values, right sizes, resumed, and nothing lost to a bad file."""

import dataclasses
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.data.files import to_label_ids
from s2fpn_lib.data.images import read_image
from s2fpn_lib.model import build_model
from s2fpn_lib.model.tta import predict_logits
from s2fpn_lib.viz.images import colorize, overlay
from s2fpn_lib.workbench import predict as module
from s2fpn_lib.workbench.media import MediaError, write_png, write_video
from s2fpn_lib.workbench.predict import ids_at_size, network_size, predict

PROTOCOL = get_protocol("roadscenes")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model("s2fpn_lite", num_classes=11).eval()
    model.head.weight.data *= 100  # decided like a trained one: no ties for rounding to break
    return model


@pytest.fixture
def folder(tmp_path):
    """Two pictures of different sizes, one of them in a subfolder, and two files that are no pictures."""
    data = open_dataset("roadscenes", split="val", cache=False)
    scene = data[0][0].permute(1, 2, 0).numpy()
    write_png(tmp_path / "in" / "a.png", scene[::3, ::3])
    (tmp_path / "in" / "more").mkdir()
    Image.fromarray(scene[::2, 50:150]).convert("L").save(tmp_path / "in" / "more" / "b.jpg")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and nothing more")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


def read(path):
    with Image.open(path) as picture:
        return np.array(picture)


def test_every_file_is_what_the_network_says(model, folder, tmp_path):
    out = tmp_path / "out"
    report = predict(model, folder, out, PROTOCOL, size=(64, 96), flip=True)
    assert (report.predicted, report.kept) == (2, 0)
    assert list(report.areas["picture"]) == ["a", "more/b"]
    for name, source in {"a": "a.png", "more/b": "more/b.jpg"}.items():
        image = torch.from_numpy(read_image(folder / source)).permute(2, 0, 1)
        seen = F.interpolate(image[None].float(), (64, 96), mode="bilinear", antialias=True)
        scores = predict_logits(model, seen.round().clamp(0, 255).to(torch.uint8), flip=True)
        size = image.shape[-2:]
        ids = F.interpolate(scores, size, mode="bilinear").argmax(1)[0].to(torch.uint8)
        found = read(out / "train_ids" / f"{name}.png")
        assert found.shape == tuple(size)
        assert (found == ids.numpy()).mean() > 0.999
        found = torch.from_numpy(found)
        np.testing.assert_array_equal(read(out / "colour" / f"{name}.png"), colorize(found, PROTOCOL))
        np.testing.assert_array_equal(read(out / "overlay" / f"{name}.png"), overlay(image, found, PROTOCOL))
        row = report.areas.set_index("picture").loc[name]
        assert (row["height"], row["width"]) == tuple(size)
        for i, class_name in enumerate(PROTOCOL.classes):
            assert row[class_name] == pytest.approx(100 * (found == i).double().mean().item())
    stored = pd.read_csv(out / "areas.csv")
    pd.testing.assert_frame_equal(stored, report.areas, check_exact=False, atol=1e-4, check_dtype=False)
    assert not (out / "label_ids").exists()


def test_unreadable_files_are_listed_and_the_rest_is_done(model, folder, tmp_path):
    report = predict(model, folder, tmp_path / "out", PROTOCOL, size=(32, 32))
    assert [str(folder / name) for name in ("broken.jpg", "notes.txt")] == list(report.skipped["source"])
    assert report.skipped["reason"].str.contains("cannot be decoded").all()
    assert len(pd.read_csv(tmp_path / "out" / "skipped.csv")) == 2
    assert len(report.areas) == 2


def test_nothing_readable_is_an_error_that_lists_the_reasons(model, folder, tmp_path):
    with pytest.raises(MediaError, match=r"nothing could be predicted:\n  .*notes\.txt"):
        predict(model, folder / "notes.txt", tmp_path / "out", PROTOCOL)


def test_a_second_call_predicts_only_what_is_missing_or_newer(model, folder, tmp_path, monkeypatch):
    def run(**options):
        report = predict(model, folder, tmp_path / "out", PROTOCOL, size=(32, 32), **options)
        return report.predicted, report.kept

    def stopped(*_):
        raise KeyboardInterrupt

    assert run(limit=1) == (1, 0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_image", stopped)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert len(pd.read_csv(tmp_path / "out" / "areas.csv")) == 1
    first = (tmp_path / "out" / "train_ids" / "a.png").stat().st_mtime_ns
    assert run() == (1, 1)
    assert run() == (0, 2)
    assert (tmp_path / "out" / "train_ids" / "a.png").stat().st_mtime_ns == first
    (tmp_path / "out" / "overlay" / "more" / "b.png").unlink()
    assert run() == (1, 1)
    (tmp_path / "out" / "train_ids" / "a.png").write_bytes(b"torn")
    assert run() == (1, 1)
    write_png(folder / "a.png", np.zeros((40, 50, 3), np.uint8))
    assert run() == (1, 1)
    assert read(tmp_path / "out" / "train_ids" / "a.png").shape == (40, 50)
    assert run(overwrite=True) == (2, 0)


def test_results_of_other_settings_are_not_mixed(model, folder, tmp_path):
    predict(model, folder / "a.png", tmp_path / "out", PROTOCOL, size=(32, 32))
    with pytest.raises(ValueError, match=r"other settings \(size\).*overwrite=True"):
        predict(model, folder / "a.png", tmp_path / "out", PROTOCOL, size=(32, 64))
    torch.manual_seed(1)
    other = build_model("s2fpn_lite", num_classes=11).eval()
    with pytest.raises(ValueError, match=r"other settings \(weights\)"):
        predict(other, folder / "a.png", tmp_path / "out", PROTOCOL, size=(32, 32))
    report = predict(model, folder / "a.png", tmp_path / "out", PROTOCOL, size=(32, 64), overwrite=True)
    assert report.predicted == 1


def test_files_of_one_name_get_results_of_their_own(model, tmp_path):
    files = {"a.jpg": 40, "a.png": 44, "a_png.jpg": 48, "A.bmp": 52}
    for name, width in files.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(np.full((32, width, 3), 200, np.uint8)).save(tmp_path / "in" / name)
    report = predict(model, tmp_path / "in", tmp_path / "out", PROTOCOL, size="own")
    assert {Path(row.source).name: row.width for row in report.areas.itertuples()} == files
    for row in report.areas.itertuples():
        assert read(tmp_path / "out" / "train_ids" / f"{row.picture}.png").shape == (32, row.width)
    assert report.areas["picture"].str.casefold().is_unique


def test_a_result_of_another_file_is_not_taken_over(model, tmp_path):
    """a.png is replaced by an older a.jpg, which gets the same name."""
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "a.png", np.zeros((32, 40, 3), np.uint8))
    predict(model, tmp_path / "in", tmp_path / "out", PROTOCOL, size="own")
    (tmp_path / "in" / "a.png").unlink()
    Image.fromarray(np.full((32, 44, 3), 200, np.uint8)).save(tmp_path / "in" / "a.jpg")
    os.utime(tmp_path / "in" / "a.jpg", (1, 1))
    for predicted in (1, 0):
        report = predict(model, tmp_path / "in", tmp_path / "out", PROTOCOL, size="own")
        assert (report.predicted, list(report.areas["picture"]), list(report.areas["width"])) == (
            predicted,
            ["a"],
            [44],
        )


def test_everything_that_is_not_predicted_is_listed(model, folder):
    (folder / ".hidden.png").write_bytes((folder / "a.png").read_bytes())
    out = folder / "out"
    predict(model, folder / "a.png", out, PROTOCOL, size=(32, 32))
    report = predict(model, folder, out, PROTOCOL, size=(32, 32), limit=1)
    reasons = {str(Path(row.source).relative_to(folder)): row.reason for row in report.skipped.itertuples()}
    assert list(report.areas["picture"]) == ["a"]
    assert reasons == {
        ".hidden.png": "hidden file",
        "out": "folder of the results; files in it: 6",  # three pictures, areas, skipped, settings
        "broken.jpg": "beyond limit = 1",
        "more/b.jpg": "beyond limit = 1",
        "notes.txt": "beyond limit = 1",
    }
    stored = pd.read_csv(out / "skipped.csv")
    pd.testing.assert_frame_equal(stored, report.skipped, check_dtype=False)


def test_cityscapes_gets_label_ids_for_submission(tmp_path):
    torch.manual_seed(0)
    model = build_model("s2fpn_lite", num_classes=19).eval()
    write_png(tmp_path / "berlin_000000_000019_leftImg8bit.png", np.random.default_rng(0).integers(
        0, 256, (48, 64, 3), dtype=np.uint8))  # fmt: skip
    protocol = get_protocol("cityscapes-fine-1024x2048")
    report = predict(model, tmp_path, tmp_path / "out", protocol, size="own")
    (name,) = report.areas["picture"]
    train, label = (read(tmp_path / "out" / kind / f"{name}.png") for kind in ("train_ids", "label_ids"))
    np.testing.assert_array_equal(label, to_label_ids(train))
    assert set(np.unique(label)) <= {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    assert predict(model, tmp_path, tmp_path / "out", protocol, size="own").kept == 1


def test_a_video_gives_frames_and_an_overlay_video(model, tmp_path):
    av = pytest.importorskip("av")
    pictures = []
    for i in range(5):
        pictures.append(tmp_path / "frames" / f"{i}.png")
        write_png(pictures[-1], np.full((48, 64, 3), 50 * i, np.uint8))
    write_video(tmp_path / "in" / "drive.mp4", pictures, Fraction(10))
    out = tmp_path / "out"
    report = predict(model, tmp_path / "in", out, PROTOCOL, size=(32, 64), every=2)
    names = ["drive/000000", "drive/000002", "drive/000004"]
    assert list(report.areas["picture"]) == names
    with av.open(str(out / "overlay" / "drive.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3
        assert container.streams.video[0].average_rate == 5
    written = (out / "overlay" / "drive.mp4").stat().st_mtime_ns
    assert list(report.skipped["reason"]) == ["2 of its first 5 frames: every = 2"]
    again = predict(model, tmp_path / "in", out, PROTOCOL, size=(32, 64), every=2)
    assert (again.predicted, again.kept) == (0, 3)
    assert (out / "overlay" / "drive.mp4").stat().st_mtime_ns == written
    (tmp_path / "in" / "drive").mkdir()
    write_png(tmp_path / "in" / "drive" / "000000.png", np.zeros((32, 40, 3), np.uint8))
    report = predict(model, tmp_path / "in", tmp_path / "two", PROTOCOL, size=(32, 64), limit=3)
    assert list(report.areas["picture"]) == ["drive/000000", "drive_mp4/000000", "drive_mp4/000001"]
    assert list(report.skipped["reason"]) == ["frames from number 000002 on are beyond limit = 3"]


def test_a_broken_video_is_listed_beside_pictures(model, folder, tmp_path):
    (folder / "cut.mp4").write_bytes(b"no video")
    report = predict(model, folder, tmp_path / "out", PROTOCOL, size=(32, 32))
    assert len(report.areas) == 2
    assert report.skipped.set_index("source").loc[str(folder / "cut.mp4"), "reason"].startswith("no readable video")


@pytest.mark.parametrize("size", [(37, 53), (300, 21), (600, 90)])
def test_ids_are_those_of_resized_scores(size):
    scores = torch.randn(1, 7, 30, 41, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(scores, size, mode="bilinear", align_corners=False).argmax(1)[0]
    found = ids_at_size(scores, size)
    assert found.dtype == torch.uint8
    assert (found == expected).float().mean() > 0.9995  # ties of two classes are rounding's to break


def test_what_the_network_sees():
    assert network_size((480, 640), "protocol", PROTOCOL) == (240, 320)
    assert network_size((100, 300), "protocol", PROTOCOL) == (240, 720)
    assert network_size((100, 300), "own", PROTOCOL) == (100, 300)
    assert network_size((100, 300), (64, 32), PROTOCOL) == (64, 32)
    assert network_size((3000, 100), "protocol", PROTOCOL) == (960, 32)  # no side under what the network takes
    assert network_size((8, 16), "own", PROTOCOL) == (32, 64)
    for size in ("huge", "100x", (100,), (16, 64)):
        with pytest.raises(ValueError, match=r'"protocol", "own", or \(height, width\) of at least 32 pixels'):
            network_size((100, 300), size, PROTOCOL)


def test_options_that_make_no_sense_are_refused_before_anything_is_written(model, folder, tmp_path):
    out = tmp_path / "out"
    for options, reason in (
        ({"size": "big"}, "size is 'big'"),
        ({"size": (8, 8)}, "at least 32"),
        ({"every": 0}, "every"),
    ):
        with pytest.raises(ValueError, match=reason):
            predict(model, folder, out, PROTOCOL, **options)
    fewer = dataclasses.replace(PROTOCOL, classes=PROTOCOL.classes[:3], palette=PROTOCOL.palette[:3])
    with pytest.raises(ValueError, match="11 classes, roadscenes has 3"):
        predict(model, folder, out, fewer)
    with pytest.raises(FileNotFoundError):
        predict(model, folder / "nowhere", out, PROTOCOL)
    assert not out.exists()


@pytest.mark.cuda
def test_on_a_gpu(model, folder, tmp_path, device):
    on_gpu = build_model("s2fpn_lite", num_classes=11).to(device).eval()
    on_gpu.load_state_dict(model.state_dict())
    a = predict(on_gpu, folder, tmp_path / "gpu", PROTOCOL, size=(64, 96)).areas
    b = predict(model, folder, tmp_path / "cpu", PROTOCOL, size=(64, 96)).areas
    assert np.abs(a[list(PROTOCOL.classes)].to_numpy() - b[list(PROTOCOL.classes)].to_numpy()).max() < 1


def test_real_pictures_keep_their_size(model, camvid_root, tmp_path):
    data = open_dataset("camvid", camvid_root, "val", cache=False)
    source = data.samples[0].image
    report = predict(model, source, tmp_path / "out", data.protocol)
    assert read(tmp_path / "out" / "train_ids" / f"{source.stem}.png").shape == read(source).shape[:2]
    assert report.areas[list(data.protocol.classes)].sum(axis=1).iloc[0] == pytest.approx(100)
