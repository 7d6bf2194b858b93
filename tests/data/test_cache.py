import multiprocessing
import os
import pickle
import shutil
import time
import warnings
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.data import DatasetError, open_dataset
from s2fpn_lib.data import files as files_module
from s2fpn_lib.data.cache import CachedDataset, CacheSpaceError
from s2fpn_lib.data.camvid import CamVid


@pytest.fixture
def decoded(monkeypatch):
    """The names of the image files that were decoded."""
    files = []
    read = files_module.read_image
    monkeypatch.setattr(files_module, "read_image", lambda path: files.append(path.name) or read(path))
    return files


def assert_same_as_files(dataset, root, split):
    direct = open_dataset("camvid", root, split, cache=False)
    assert dataset.names == direct.names
    for index in range(len(direct)):
        for cached, read in zip(dataset[index], direct[index], strict=True):
            assert torch.equal(cached, read)


def stored(cache):
    return sorted(cache.rglob("*.bin"))


def test_cached_samples_equal_the_files_and_are_decoded_once(camvid_tree, decoded):
    assert isinstance(open_dataset("camvid", camvid_tree, "train"), CachedDataset)
    assert len(set(decoded)) == 6
    decoded.clear()
    dataset = open_dataset("camvid", camvid_tree, "train")
    _ = [dataset[index] for index in range(6)]
    assert decoded == []
    assert_same_as_files(dataset, camvid_tree, "train")


def test_mixed_sizes(camvid_tree, write_pair, monkeypatch):
    monkeypatch.setattr(CamVid, "RESIZED", True)  # which accepts every size
    folder = camvid_tree / "camvid"
    for number, size in enumerate([(7, 5), (40, 64)]):
        write_pair(folder / "val" / f"x_{number}.png", folder / "valannot" / f"x_{number}.png", number, size)
    dataset = open_dataset("camvid", camvid_tree, "val")
    assert [dataset.label_summary(index)[0] for index in (3, 4)] == [(7, 5), (40, 64)]
    assert_same_as_files(dataset, camvid_tree, "val")


def test_changes_by_a_caller_do_not_reach_the_cache(camvid_tree):
    dataset = open_dataset("camvid", camvid_tree, "val")
    for tensor in dataset[0]:
        tensor.zero_()
    dataset.arrays(0)[0][:] = 0  # copy-on-write: even that stays in this process
    assert_same_as_files(open_dataset("camvid", camvid_tree, "val"), camvid_tree, "val")


def test_unchanged_files_are_not_read_again(camvid_tree, monkeypatch):
    monkeypatch.setattr("s2fpn_lib.data.cache._CLOCK_TICK_NS", 10_000_000)
    time.sleep(0.05)
    open_dataset("camvid", camvid_tree, "val")
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail(f"{path} was read again"))
    assert isinstance(open_dataset("camvid", camvid_tree, "val"), CachedDataset)


def test_a_touched_file_is_hashed_but_not_decoded(camvid_tree, decoded, cache_folder):
    open_dataset("camvid", camvid_tree, "val")
    before = stored(cache_folder)
    decoded.clear()
    (camvid_tree / "camvid" / "val" / "0016E5_000003.png").touch()
    open_dataset("camvid", camvid_tree, "val")
    assert decoded == []
    assert stored(cache_folder) == before


def test_only_a_changed_file_is_decoded_again(camvid_tree, decoded, cache_folder):
    open_dataset("camvid", camvid_tree, "val")
    before = stored(cache_folder)
    label = camvid_tree / "camvid" / "valannot" / "0016E5_000004.png"
    stat = label.stat()
    Image.fromarray(np.full((24, 32), 5, dtype=np.uint8)).save(label)
    os.utime(label, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a copy that keeps the time of modification
    decoded.clear()
    dataset = open_dataset("camvid", camvid_tree, "val")
    assert set(decoded) == {"0016E5_000004.png"}
    assert (dataset[1][1] == 5).all()
    assert_same_as_files(dataset, camvid_tree, "val")
    assert len(stored(cache_folder)) == 3, "the old content is removed"
    assert stored(cache_folder) != before


def test_added_and_removed_files(camvid_tree, write_pair):
    folder = camvid_tree / "camvid"
    open_dataset("camvid", camvid_tree, "val")
    write_pair(folder / "val" / "0016E5_000001.png", folder / "valannot" / "0016E5_000001.png", 77)
    assert_same_as_files(open_dataset("camvid", camvid_tree, "val"), camvid_tree, "val")
    (folder / "val" / "0016E5_000004.png").unlink()
    (folder / "valannot" / "0016E5_000004.png").unlink()
    assert_same_as_files(open_dataset("camvid", camvid_tree, "val"), camvid_tree, "val")


def flip_bit(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(content)


DAMAGE = {
    "pixels cut short": lambda file: os.truncate(file, file.stat().st_size - 100),
    "header cut short": lambda file: os.truncate(file, 100),
    "empty": lambda file: os.truncate(file, 0),
    "removed": lambda file: file.unlink(),
    "bit of a pixel": lambda file: flip_bit(file, file.stat().st_size - 11),
    "bit of a label count": lambda file: flip_bit(file, 64),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_rebuilt(camvid_tree, cache_folder, kind):
    dataset = open_dataset("camvid", camvid_tree, "val")
    DAMAGE[kind](stored(cache_folder)[0])
    with pytest.warns(UserWarning, match="damaged"):
        assert_same_as_files(dataset, camvid_tree, "val")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_as_files(open_dataset("camvid", camvid_tree, "val"), camvid_tree, "val")


@pytest.mark.parametrize("kind", ["changed", "removed"])
def test_a_cache_file_is_not_rebuilt_from_changed_data(camvid_tree, cache_folder, kind):
    dataset = open_dataset("camvid", camvid_tree, "val")
    unchanged = dataset[0][0]
    label = camvid_tree / "camvid" / "valannot" / "0016E5_000004.png"
    content = label.read_bytes()
    Image.fromarray(np.full((24, 32), 5, dtype=np.uint8)).save(label)
    open_dataset("camvid", camvid_tree, "val")  # as another process does; removes the cache file of the old content
    before = stored(cache_folder)
    if kind == "removed":
        label.unlink()
    for read in (dataset.arrays, dataset.label_summary):
        with pytest.raises(DatasetError, match=f"{label}: the data changed while in use"):
            read(1)
    assert stored(cache_folder) == before
    assert torch.equal(dataset[0][0], unchanged)
    label.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert_same_as_files(dataset, camvid_tree, "val")


def test_a_damaged_index_is_replaced(camvid_tree, cache_folder):
    open_dataset("camvid", camvid_tree, "val")
    next(cache_folder.rglob("index.json")).write_text('{"content": 3')
    assert_same_as_files(open_dataset("camvid", camvid_tree, "val"), camvid_tree, "val")


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(camvid_tree, cache_folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10_000, 9_000, 1_000))
        with pytest.raises(CacheSpaceError, match=r"needs .* GB.*S2FPN_CACHE.*cache=False"):
            open_dataset("camvid", camvid_tree, "val")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheSpaceError):
        open_dataset("camvid", camvid_tree, "val")
    assert not [path for path in cache_folder.rglob("*") if path.is_file() and path.name != "index.json"]


def test_without_a_writable_folder_files_are_decoded_directly(camvid_tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("S2FPN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="S2FPN_CACHE"):
        dataset = open_dataset("camvid", camvid_tree, "val")
    assert not isinstance(dataset, CachedDataset)
    assert_same_as_files(dataset, camvid_tree, "val")


def test_a_broken_file_is_named_on_access(camvid_tree):
    broken = camvid_tree / "camvid" / "val" / "0016E5_000004.png"
    os.truncate(broken, 300)
    with pytest.warns(UserWarning, match="check_dataset"):
        dataset = open_dataset("camvid", camvid_tree, "val")
    assert dataset[0][0].shape == (3, 24, 32)
    with pytest.raises(DatasetError, match=broken.name):
        dataset[1]


def _open_at_once(root, cache, barrier, results):
    os.environ["S2FPN_CACHE"] = cache
    torch.set_num_threads(1)
    barrier.wait(30)
    dataset = open_dataset("camvid", root, "train")
    results.put((type(dataset).__name__, sum(int(image.sum()) + int(label.sum()) for image, label in dataset)))


def test_two_processes_build_at_once(camvid_tree, cache_folder):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (camvid_tree, str(cache_folder), barrier, results)
    processes = [context.Process(target=_open_at_once, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    direct = open_dataset("camvid", camvid_tree, "train", cache=False)
    total = sum(int(image.sum()) + int(label.sum()) for image, label in direct)
    assert found == [("CachedDataset", total)] * 2
    assert len(stored(cache_folder)) == 6


def test_an_interrupted_build_continues(camvid_tree, cache_folder, decoded):
    open_dataset("camvid", camvid_tree, "train")
    for file in stored(cache_folder)[2:]:
        file.unlink()
    decoded.clear()
    open_dataset("camvid", camvid_tree, "train")
    assert len(set(decoded)) == 4


def test_a_pickled_dataset_holds_no_pixels(camvid_tree):
    dataset = open_dataset("camvid", camvid_tree, "trainval:drive=0016E5")
    data = pickle.dumps(dataset)
    assert len(data) < 20_000
    assert torch.equal(pickle.loads(data)[3][0], dataset[3][0])


def test_roadscenes_use_the_cache(monkeypatch):
    from s2fpn_lib.data.cache import cached
    from s2fpn_lib.data.roadscenes.dataset import RoadScenes

    image, label = cached(RoadScenes("val", size=(48, 64), count=6))[5]
    monkeypatch.setattr("s2fpn_lib.data.roadscenes.dataset.render_scene", lambda *_: pytest.fail("drawn again"))
    again = cached(RoadScenes("val", size=(48, 64), count=6))
    assert torch.equal(again[5][0], image)
    assert torch.equal(again[5][1], label)


def test_real_camvid_through_the_cache(camvid_root):
    dataset, direct = (open_dataset("camvid", camvid_root, "val", cache=cache) for cache in (True, False))
    for index in (0, 50, 100):
        assert torch.equal(dataset[index][0], direct[index][0])
        assert torch.equal(dataset[index][1], direct[index][1])
