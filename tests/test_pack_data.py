"""scripts/pack_data.py: the packed data is the same dataset, in archives of the given size."""

import numpy as np
import pytest
from PIL import Image

from s2fpn_lib.benchmark.gpu import unpacked
from s2fpn_lib.benchmark.training import files_like
from s2fpn_lib.data import open_dataset
from s2fpn_lib.runs import PROJECT
from tests.loading import load_file

pack_data = load_file(PROJECT / "scripts" / "pack_data.py")


def test_unpacked_data_is_the_same_dataset(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("S2FPN_DATA", str(tmp_path / "none"))
    root = files_like("camvid", tmp_path / "data", 3)
    label = Image.open(root / "camvid" / "trainannot" / "0000XX_000000.png")
    pixels = np.array(label)
    pixels[:5] = 255  # unlabeled in the second way that CamVid's editions use
    Image.fromarray(pixels).save(label.filename)
    (tmp_path / "encoder.pth").write_bytes(b"weights")
    options = ["--data", str(root), "--splits", "train", "--megabytes", "0.4", "--also", str(tmp_path / "encoder.pth")]
    pack_data.main([str(tmp_path / "packed"), *options])
    archives = sorted((tmp_path / "packed").iterdir())
    assert len(archives) == len(capsys.readouterr().out.splitlines()) > 1
    assert all(path.stat().st_size <= 0.4e6 for path in archives)
    folder = unpacked(tmp_path / "packed", tmp_path / "unpacked")
    assert (folder / "encoder.pth").read_bytes() == b"weights"
    before, after = (open_dataset("camvid", each, "train", cache=False) for each in (root, folder))
    assert {sample.image.suffix for sample in after.samples} == {".webp"}
    assert after.names == before.names
    assert after.digest() == before.digest()


def test_parts_keep_the_order_and_the_size():
    entries = [(name, bytes(size)) for name, size in (("a", 300), ("b", 500), ("c", 5000), ("d", 10))]
    groups = pack_data.parts(entries, 1200)
    assert [[name for name, _ in group] for group in groups] == [["a", "b"], ["c"], ["d"]]


def test_a_lossy_encoding_is_an_error():
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    with pytest.raises(RuntimeError, match="JPEG changes pixels"):
        pack_data.encoded(noise, "JPEG")
