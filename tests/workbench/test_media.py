"""Pictures of every kind become uint8 RGB, videos give their frames, and what is unreadable says why."""

import struct
import sys
import zlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.workbench.media import (
    MediaError,
    find_media,
    read_picture,
    video_frames,
    video_summary,
    write_png,
    write_video,
)

av = pytest.importorskip("av")


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def planes(pixels):
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, pixels, mode):
    picture = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path)
    assert torch.equal(read_picture(path), planes(np.asarray(picture.convert("RGB"))))


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    gray = np.linspace(0, 65535, 40 * 24).round().astype(np.uint16).reshape(24, 40)
    Image.fromarray(gray).save(tmp_path / "grey.png")
    found = read_picture(tmp_path / "grey.png")
    expected = torch.from_numpy((gray / 257).round().astype(np.uint8))
    assert torch.equal(found, expected.expand(3, -1, -1))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    color = np.random.default_rng(0).integers(0, 65536, (8, 9, 3)).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in color)  # each row begins with its filter, 0: none
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 8, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    (tmp_path / "colour.png").write_bytes(data)
    found = read_picture(tmp_path / "colour.png").permute(1, 2, 0).numpy()
    assert np.abs(found - color.astype(int) / 257).max() <= 1


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (6, -1), (3, 2), (8, 1)])
def test_pictures_stand_upright(tmp_path, pixels, orientation, turned):
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_picture(tmp_path / "a.png"), planes(np.rot90(pixels, turned)))


def test_what_is_no_picture_is_named(tmp_path, pixels):
    write_png(tmp_path / "whole.png", pixels)
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "text.jpg").write_text("no picture")
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    for name, reason in {"cut.png": "", "text.jpg": "", "float.tif": "8 or 16 bits", "missing.png": ""}.items():
        with pytest.raises(MediaError, match=f"{name}: no readable picture.*{reason}"):
            read_picture(tmp_path / name)


def test_files_are_found_in_order_without_hidden_ones_and_results(tmp_path):
    for name in ("b.png", "a/c.jpg", ".hidden.png", ".cache/d.png", "out/colour/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_media(tmp_path, leave_out=tmp_path / "out")
    assert found == [tmp_path / "a" / "c.jpg", tmp_path / "b.png"]
    assert find_media(tmp_path / "b.png") == [tmp_path / "b.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="holds no file"):
        find_media(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_media(tmp_path / "nowhere")


@pytest.fixture
def clip(tmp_path):
    """Eight frames of 47 x 65, each of one grey of its own, at 10 frames a second."""
    pictures = []
    for i in range(8):
        pictures.append(tmp_path / "frames" / f"{i}.png")
        write_png(pictures[-1], np.full((47, 65, 3), 30 * i, np.uint8))
    write_video(tmp_path / "clip.mp4", pictures, Fraction(10))
    return tmp_path / "clip.mp4"


def test_a_video_gives_its_frames(clip):
    assert video_summary(clip) == (8, 10)
    frames = dict(video_frames(clip))
    assert list(frames) == list(range(8))
    for number, frame in frames.items():
        assert frame.shape == (3, 46, 64)  # the codec has no odd sizes
        assert frame.dtype == torch.uint8
        assert abs(frame.float().mean() - 30 * number) < 4
    assert [number for number, _ in video_frames(clip, every=3)] == [0, 3, 6]
    assert [path.name for path in clip.parent.iterdir() if path.is_file()] == ["clip.mp4"]


def test_broken_videos_are_named(clip):
    clip.with_name("text.mp4").write_text("no video")
    with pytest.raises(MediaError, match=r"text\.mp4: no readable video"):
        list(video_frames(clip.with_name("text.mp4")))
    with pytest.raises(MediaError, match=r"text\.mp4: no readable video"):
        video_summary(clip.with_name("text.mp4"))


def test_a_failed_write_leaves_the_old_video(clip):
    before = clip.read_bytes()
    with pytest.raises(MediaError):
        write_video(clip, [clip.parent / "frames" / "0.png", clip.parent / "missing.png"], Fraction(10))
    assert clip.read_bytes() == before
    assert [path.name for path in clip.parent.iterdir() if path.is_file()] == ["clip.mp4"]


def test_without_pyav_the_extra_is_named(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r"pip install 's2fpn-workbench\[video\]'"):
        list(video_frames(clip))
