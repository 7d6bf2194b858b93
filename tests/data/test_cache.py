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

from s2fpn_lib.data import CachedDataset, CacheSpaceError, DatasetError, open_dataset
from s2fpn_lib.data import dataset as dataset_module


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that were decoded since."""
    files = []
    decode = dataset_module._decode
    monkeypatch.setattr(dataset_module, "_decode", lambda path, mode: files.append(path.name) or decode(path, mode))
    return files


def make_old(root):
    """Dates every file back: the stat of a file younger than the clock's tick is not trusted."""
    for path in root.rglob("*.png"):
        os.utime(path, (1_600_000_000, 1_600_000_000))


def same_as_files(dataset, root, split):
    direct = open_dataset("camvid", root, split, cache=False)
    assert dataset.names == direct.names
    for index in range(len(direct)):
        for cached, read in zip(dataset[index], direct[index], strict=True):
            assert torch.equal(cached, read)


def folders(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_cached_samples_equal_the_files_and_are_decoded_once(camvid_tree, decoded):
    assert isinstance(open_dataset("camvid", camvid_tree, "train"), CachedDataset)
    assert len(decoded) == 12
    decoded.clear()
    dataset = open_dataset("camvid", camvid_tree, "train")
    _ = [dataset[index] for index in range(6)]
    assert decoded == []
    same_as_files(dataset, camvid_tree, "train")


def test_mixed_sizes(camvid_tree, write_pair):
    folder = camvid_tree / "camvid"
    for number, size in enumerate([(7, 5), (40, 64)]):
        write_pair(folder / "val" / f"x_{number}.png", folder / "valannot" / f"x_{number}.png", number, size)
    dataset = open_dataset("camvid", camvid_tree, "val")
    assert isinstance(dataset, CachedDataset)
    assert dataset.sizes()[-2:] == [(7, 5), (40, 64)]
    same_as_files(dataset, camvid_tree, "val")


def test_what_a_caller_does_to_a_sample_stays_with_the_caller(camvid_tree):
    dataset = open_dataset("camvid", camvid_tree, "val")
    image, label = dataset[0]
    image.zero_()
    label.zero_()
    same_as_files(dataset, camvid_tree, "val")


def test_unchanged_files_are_not_read_again(camvid_tree, monkeypatch):
    make_old(camvid_tree)
    time.sleep(2.1)  # the change time cannot be dated back
    open_dataset("camvid", camvid_tree, "val")
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail(f"{path} was read again"))
    assert isinstance(open_dataset("camvid", camvid_tree, "val"), CachedDataset)


def test_a_touched_file_is_hashed_but_not_decoded(camvid_tree, decoded, cache_folder):
    open_dataset("camvid", camvid_tree, "val")
    before = folders(cache_folder)
    decoded.clear()
    (camvid_tree / "camvid" / "val" / "0016E5_000003.png").touch()
    open_dataset("camvid", camvid_tree, "val")
    assert decoded == []
    assert folders(cache_folder) == before


def test_a_changed_file_alone_is_decoded_again(camvid_tree, decoded, cache_folder):
    open_dataset("camvid", camvid_tree, "val")
    before = folders(cache_folder)
    label = camvid_tree / "camvid" / "valannot" / "0016E5_000004.png"
    stat = label.stat()
    Image.fromarray(np.full((24, 32), 5, dtype=np.uint8)).save(label)
    os.utime(label, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a careless copy would
    decoded.clear()
    dataset = open_dataset("camvid", camvid_tree, "val")
    assert decoded == ["0016E5_000004.png"] * 2  # its image and its label
    assert (dataset[1][1] == 5).all()
    same_as_files(dataset, camvid_tree, "val")
    assert len(folders(cache_folder)) == 1, "the cache of the old content is removed"
    assert folders(cache_folder) != before


def test_added_and_removed_files(camvid_tree, write_pair):
    folder = camvid_tree / "camvid"
    open_dataset("camvid", camvid_tree, "val")
    write_pair(folder / "val" / "0016E5_000001.png", folder / "valannot" / "0016E5_000001.png", 77)
    same_as_files(open_dataset("camvid", camvid_tree, "val"), camvid_tree, "val")
    (folder / "val" / "0016E5_000004.png").unlink()
    (folder / "valannot" / "0016E5_000004.png").unlink()
    same_as_files(open_dataset("camvid", camvid_tree, "val"), camvid_tree, "val")


DAMAGE = {
    "pixels cut short": lambda folder: os.truncate(folder / "pixels.bin", 100),
    "pixels gone": lambda folder: (folder / "pixels.bin").write_bytes(b""),
    "pixels removed": lambda folder: (folder / "pixels.bin").unlink(),
    "manifest removed": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut short": lambda folder: os.truncate(folder / "manifest.json", 200),
    "manifest edited": lambda folder: (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text().replace('"offset": 3072', '"offset": 3073')
    ),
    "manifest empty": lambda folder: (folder / "manifest.json").write_text(""),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_rebuilt(camvid_tree, cache_folder, kind):
    open_dataset("camvid", camvid_tree, "val")
    DAMAGE[kind](cache_folder / folders(cache_folder)[0])
    with pytest.warns(UserWarning, match="damaged"):
        dataset = open_dataset("camvid", camvid_tree, "val")
    same_as_files(dataset, camvid_tree, "val")


def test_a_flipped_bit_is_noticed_on_reading(camvid_tree, cache_folder):
    open_dataset("camvid", camvid_tree, "val")
    with (cache_folder / folders(cache_folder)[0] / "pixels.bin").open("r+b") as file:
        file.seek(24 * 32 * 4 + 11)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    dataset = open_dataset("camvid", camvid_tree, "val")
    with pytest.warns(UserWarning, match="damaged"):
        _ = dataset[1]
    same_as_files(dataset, camvid_tree, "val")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same_as_files(open_dataset("camvid", camvid_tree, "val"), camvid_tree, "val")


def test_a_damaged_file_index_costs_a_read_only(camvid_tree, cache_folder):
    open_dataset("camvid", camvid_tree, "val")
    next(cache_folder.glob("*.files.json")).write_text('{"content": 3')
    same_as_files(open_dataset("camvid", camvid_tree, "val"), camvid_tree, "val")


def test_no_room_is_a_clear_error_and_leaves_nothing(camvid_tree, cache_folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10_000, 9_000, 1_000))
    with pytest.raises(CacheSpaceError, match=r"needs .* GB.*S2FPN_CACHE.*cache=False"):
        open_dataset("camvid", camvid_tree, "val")
    assert list(cache_folder.iterdir()) == []


def test_a_disk_that_fills_while_writing_leaves_nothing(camvid_tree, cache_folder, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheSpaceError):
        open_dataset("camvid", camvid_tree, "val")
    assert list(cache_folder.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_means_direct_decoding(camvid_tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("S2FPN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="S2FPN_CACHE"):
        dataset = open_dataset("camvid", camvid_tree, "val")
    assert not isinstance(dataset, CachedDataset)
    same_as_files(dataset, camvid_tree, "val")


def test_a_broken_file_leaves_no_cache_and_names_the_file_on_access(camvid_tree, cache_folder):
    broken = camvid_tree / "camvid" / "val" / "0016E5_000004.png"
    os.truncate(broken, 300)
    with pytest.warns(UserWarning, match="check_dataset"):
        dataset = open_dataset("camvid", camvid_tree, "val")
    assert folders(cache_folder) == []
    assert dataset[0][0].shape == (3, 24, 32)
    with pytest.raises(DatasetError, match=broken.name):
        dataset[1]


def _open_at_once(root, cache, barrier, results):
    os.environ["S2FPN_CACHE"] = cache
    torch.set_num_threads(1)
    barrier.wait(30)
    dataset = open_dataset("camvid", root, "train")
    results.put((type(dataset).__name__, sum(int(image.sum()) + int(label.sum()) for image, label in dataset)))


def test_two_processes_that_build_at_once(camvid_tree, cache_folder):
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
    assert len(folders(cache_folder)) == 1


def test_the_loser_of_a_race_takes_the_winners_folder(camvid_tree, cache_folder, monkeypatch):
    rename = type(cache_folder).rename

    def late(path, target):
        shutil.copytree(path, target)  # the other process was a moment earlier
        return rename(path, target)

    monkeypatch.setattr(type(cache_folder), "rename", late)
    dataset = open_dataset("camvid", camvid_tree, "val")
    same_as_files(dataset, camvid_tree, "val")
    assert not list(cache_folder.glob(".build-*"))


def test_what_a_killed_build_left_is_removed_later(camvid_tree, cache_folder):
    left, young = cache_folder / ".build-old", cache_folder / ".build-young"
    for folder in (left, young):
        folder.mkdir(parents=True)
    os.utime(left, (1_600_000_000, 1_600_000_000))
    open_dataset("camvid", camvid_tree, "val")
    assert not left.exists()
    assert young.exists(), "another process may still be writing it"


def test_a_pickled_dataset_reads_the_same_cache(camvid_tree):
    dataset = open_dataset("camvid", camvid_tree, "trainval:drive=0016E5")
    data = pickle.dumps(dataset)
    assert len(data) < 20_000, "pixels must not travel with it"
    copy = pickle.loads(data)
    assert torch.equal(copy[3][0], dataset[3][0])


def test_roadscenes_go_through_the_cache(monkeypatch):
    first = open_dataset("roadscenes", split="val")
    image, label = first[5]
    monkeypatch.setattr("s2fpn_lib.data.roadscenes.dataset.render_scene", lambda *_: pytest.fail("drawn again"))
    again = open_dataset("roadscenes", split="val")
    assert isinstance(again, CachedDataset)
    assert torch.equal(again[5][0], image)
    assert torch.equal(again[5][1], label)


def test_real_camvid_through_the_cache(camvid_root):
    dataset, direct = (open_dataset("camvid", camvid_root, "val", cache=cache) for cache in (True, False))
    for index in (0, 50, 100):
        assert torch.equal(dataset[index][0], direct[index][0])
        assert torch.equal(dataset[index][1], direct[index][1])
