"""Files are found, videos give their frames, and errors name the file and the reason."""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from s2fpn_lib.data.images import ImageError
from s2fpn_lib.workbench.media import (
    MediaError,
    find_media,
    result_names,
    video_frames,
    video_rate,
    write_png,
    write_video,
)

av = pytest.importorskip("av")


def test_files_are_found_in_order_and_the_others_are_listed(tmp_path):
    for name in ("b.png", "a/c.jpg", ".hidden.png", ".cache/d.png", ".cache/e/f.png", "out/colour/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found, left_out = find_media(tmp_path, leave_out=tmp_path / "out")
    assert found == [tmp_path / "a" / "c.jpg", tmp_path / "b.png"]
    assert {path.name: reason for path, reason in left_out} == {
        ".cache": "hidden folder; files in it: 2",
        ".hidden.png": "hidden file",
        "broken.png": "not a file (a broken link or a device)",
        "link": "link to a folder: links are not followed",
        "out": "folder of the results; files in it: 1",
    }
    assert find_media(tmp_path / "b.png", leave_out=tmp_path / "out") == ([tmp_path / "b.png"], [])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".x.png").touch()
    with pytest.raises(MediaError, match=r"holds no file.*\n  .*\.png: hidden file"):
        find_media(tmp_path / "empty", leave_out=tmp_path / "out")
    with pytest.raises(MediaError, match="lies in the folder of the results"):
        find_media(tmp_path / "a", leave_out=tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_media(tmp_path / "nowhere", leave_out=tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.png", "b/a.png", "c.d.jpg", "e.mp4"], ["a", "b/a", "c.d", "e"]),  # the ordinary case: no suffix
        (["a.jpg", "a.png"], ["a_jpg", "a_png"]),
        (["a.jpg", "a.png", "a_png.jpg"], ["a_jpg", "a_png-2", "a_png"]),
        (["A.png", "a.png"], ["A_png", "a_png-2"]),  # one file on Windows and macOS
        (["A.JPG", "a.png"], ["A_jpg", "a_png"]),
        (["A/x.png", "a/x.png"], ["A/x_png", "a/x_png-2"]),
        (["v.mp4", "v.png"], ["v_mp4", "v_png"]),
        (["v/000000.png", "v.mp4"], ["v/000000", "v_mp4"]),
        (["V/000000.png", "v.mp4", "v_mp4/a.png"], ["V/000000", "v_mp4-2", "v_mp4/a"]),
        (["v.mp4/x.png", "w/v.mp4"], ["v.mp4/x", "w/v"]),
        (["v.mp4/x.png", "v.avi"], ["v.mp4/x", "v_avi"]),  # overlay/v.mp4 is a folder
        (["a.png/x.png", "a.jpg"], ["a.png/x", "a_jpg"]),  # colour/a.png is a folder
    ],
)
def test_no_two_files_share_a_name(files, names):
    folder = Path("in")
    assert list(result_names([folder / file for file in files], folder).values()) == names


@pytest.fixture
def clip(tmp_path):
    """Eight frames of 47 x 65, each of one gray, at 10 frames per second."""
    pictures = []
    for i in range(8):
        pictures.append(tmp_path / "frames" / f"{i}.png")
        write_png(pictures[-1], np.full((47, 65, 3), 30 * i, np.uint8))
    write_video(tmp_path / "clip.mp4", pictures, Fraction(10))
    return tmp_path / "clip.mp4"


def test_a_video_gives_its_frames(clip):
    assert video_rate(clip) == 10
    frames = {number: load() for number, load in video_frames(clip)}
    assert list(frames) == list(range(8))
    for number, frame in frames.items():
        assert frame.shape == (46, 64, 3)  # the codec has no odd sizes
        assert frame.dtype == np.uint8
        assert abs(frame.mean() - 30 * number) < 4
    assert [path.name for path in clip.parent.iterdir() if path.is_file()] == ["clip.mp4"]


def test_broken_videos_are_named(clip):
    clip.with_name("text.mp4").write_text("no video")
    with pytest.raises(MediaError, match=r"text\.mp4: no readable video"):
        list(video_frames(clip.with_name("text.mp4")))


def test_a_failed_write_leaves_the_old_video(clip):
    before = clip.read_bytes()
    with pytest.raises(ImageError):
        write_video(clip, [clip.parent / "frames" / "0.png", clip.parent / "missing.png"], Fraction(10))
    assert clip.read_bytes() == before
    assert [path.name for path in clip.parent.iterdir() if path.is_file()] == ["clip.mp4"]


def test_without_pyav_the_extra_is_named(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r"pip install 's2fpn-workbench\[video\]'"):
        list(video_frames(clip))
