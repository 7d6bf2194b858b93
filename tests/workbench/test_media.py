"""Files are found, videos give their frames, and errors name the file and the reason."""

import sys
from fractions import Fraction

import numpy as np
import pytest

from s2fpn_lib.data.images import ImageError
from s2fpn_lib.workbench.media import (
    MediaError,
    find_media,
    video_frames,
    video_rate,
    write_png,
    write_video,
)

av = pytest.importorskip("av")


def test_files_are_found_in_order_without_hidden_ones_and_results(tmp_path):
    for name in ("b.png", "a/c.jpg", ".hidden.png", ".cache/d.png", "out/colour/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_media(tmp_path, leave_out=tmp_path / "out")
    assert found == [tmp_path / "a" / "c.jpg", tmp_path / "b.png"]
    assert find_media(tmp_path / "b.png", leave_out=tmp_path / "out") == [tmp_path / "b.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="holds no file"):
        find_media(tmp_path / "empty", leave_out=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_media(tmp_path / "nowhere", leave_out=tmp_path / "out")


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
    frames = dict(video_frames(clip))
    assert list(frames) == list(range(8))
    for number, frame in frames.items():
        assert frame.shape == (46, 64, 3)  # the codec has no odd sizes
        assert frame.dtype == np.uint8
        assert abs(frame.mean() - 30 * number) < 4
    assert [number for number, _ in video_frames(clip, every=3)] == [0, 3, 6]
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
