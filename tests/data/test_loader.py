import functools

import numpy as np
import pytest
import torch

from s2fpn_lib.data import Augment, open_dataset, train_loader
from s2fpn_lib.data.statistics import rare_pixels

UNCHANGED = Augment(scales=(1.0,), flip=False)


@pytest.fixture
def dataset(camvid_tree):
    return open_dataset("camvid", camvid_tree, "trainval")  # 9 samples of 24x32


def loader_of(dataset, **options):
    return train_loader(dataset, **{"crop": (16, 20), "batch_size": 2, "seed": 3, **options})


def epochs(loader, count):
    return [[(images.clone(), labels.clone()) for images, labels in loader] for _ in range(count)]


def assert_equal(one, other):
    assert len(one) == len(other)
    for (images, labels), (others, other_labels) in zip(one, other, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_batches_have_the_documented_form(dataset):
    loader = loader_of(dataset)
    batches = epochs(loader, 1)[0]
    assert len(batches) == len(loader) == 4
    for images, labels in batches:
        assert (images.shape, images.dtype) == ((2, 3, 16, 20), torch.uint8)
        assert (labels.shape, labels.dtype) == ((2, 16, 20), torch.uint8)
        assert labels.max() <= 11


def test_without_augmentation_an_epoch_is_a_permutation_of_the_samples(dataset):
    batches = epochs(loader_of(dataset, crop=(24, 32), batch_size=3, augment=UNCHANGED), 1)[0]
    seen = sorted(image.numpy().tobytes() for images, _ in batches for image in images)
    assert seen == sorted(dataset[index][0].numpy().tobytes() for index in range(9))


def test_epochs_and_seeds_differ(dataset):
    first, second = epochs(loader_of(dataset), 2)
    other = epochs(loader_of(dataset, seed=4), 1)[0]
    assert not torch.equal(first[0][0], second[0][0])
    assert not torch.equal(first[0][0], other[0][0])


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 2}])
def test_any_number_of_workers_gives_the_same_batches(dataset, options, monkeypatch):
    monkeypatch.setattr("s2fpn_lib.data.loader.rare_pixels", functools.partial(rare_pixels, share=0.5))
    augment = Augment(photometric=0.2, rare_class_crops=0.5)
    reference = epochs(loader_of(dataset, augment=augment), 2)
    for one, other in zip(reference, epochs(loader_of(dataset, augment=augment, **options), 2), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize(("workers", "after"), [(0, 1), (0, 3), (0, 4), (0, 6), (1, 3), (1, 4)])
def test_resume_at_any_batch(dataset, workers, after):
    reference = [batch for epoch in epochs(loader_of(dataset), 2) for batch in epoch]
    loader = loader_of(dataset, workers=workers)
    done = 0
    while done < after:
        for _ in loader:
            done += 1
            if done == after:
                state = loader.state_dict()
                break
    resumed = loader_of(dataset)
    resumed.load_state_dict(state)
    rest = [batch for _ in range(2 - state["epoch"]) for batch in epochs(resumed, 1)[0]]
    assert_equal(reference[after:], rest)
    # the loader that was left continues at the same batch
    assert_equal(reference[after:], [batch for _ in range(2 - state["epoch"]) for batch in epochs(loader, 1)[0]])


def test_the_state_is_two_numbers_and_checked(dataset):
    loader = loader_of(dataset)
    assert loader.state_dict() == {"epoch": 0, "batch": 0}
    epochs(loader, 1)
    assert loader.state_dict() == {"epoch": 1, "batch": 0}
    with pytest.raises(ValueError, match="4 batches"):
        loader.load_state_dict({"epoch": 0, "batch": 7})


def test_global_random_state_is_not_touched(dataset):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    epochs(loader_of(dataset), 1)
    epochs(loader_of(dataset, workers=1), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_dataset_smaller_than_a_batch_wraps_around(camvid_tree):
    small = open_dataset("camvid", camvid_tree, "test")  # 2 samples
    loader = loader_of(small, crop=(24, 32), batch_size=5, augment=UNCHANGED)
    images, _ = next(iter(loader))
    assert len(loader) == 1
    assert len(images) == 5
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])


def test_ranks_share_every_global_batch(dataset):
    whole = epochs(loader_of(dataset, batch_size=4), 1)[0]
    parts = [epochs(loader_of(dataset, rank=rank, world_size=2), 1)[0] for rank in (0, 1)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 2
    for index, (images, labels) in enumerate(whole):
        assert torch.equal(images, torch.cat([parts[0][index][0], parts[1][index][0]]))
        assert torch.equal(labels, torch.cat([parts[0][index][1], parts[1][index][1]]))


def test_rare_class_crops_show_more_of_rare_classes(tmp_path, write_pair, camvid_of_size):
    from PIL import Image

    camvid_of_size(64, 64)
    for name in "abc":
        image, label = (tmp_path / "camvid" / folder / f"{name}_0.png" for folder in ("train", "trainannot"))
        write_pair(image, label, 0, (64, 64))
        ids = np.zeros((64, 64), dtype=np.uint8)
        ids[40:43, 50:53] = 9  # a pedestrian
        Image.fromarray(ids).save(label)
    dataset = open_dataset("camvid", tmp_path, "train")

    def share(augment):
        loader = loader_of(dataset, crop=(8, 8), batch_size=60, augment=augment)
        return (next(iter(loader))[1] == 9).any(dim=2).any(dim=1).float().mean().item()

    assert share(Augment(scales=(1.0,), rare_class_crops=1.0)) == 1
    assert share(Augment(scales=(1.0,))) < 0.3


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_reaches_the_caller(dataset, monkeypatch, workers):
    monkeypatch.setattr("s2fpn_lib.data.loader.draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(loader_of(dataset, workers=workers))


def test_a_batch_by_its_position(dataset):
    """`batch` and `batch_names` give the batch of all processes together."""
    parts = [epochs(loader_of(dataset, rank=rank, world_size=2), 2)[1] for rank in (0, 1)]
    loader = loader_of(dataset, rank=1, world_size=2)
    for index in (0, 1):
        images, labels = loader.batch(1, index)
        assert torch.equal(images, torch.cat([part[index][0] for part in parts]))
        assert torch.equal(labels, torch.cat([part[index][1] for part in parts]))
    plain = loader_of(dataset, crop=(24, 32), augment=UNCHANGED)
    images, _ = plain.batch(0, 2)
    named = [dataset[dataset.names.index(name)][0] for name in plain.batch_names(0, 2)]
    assert torch.equal(images, torch.stack(named))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"crop": (0, 4)}, {"rank": 2, "world_size": 2}])
def test_impossible_options_are_refused(dataset, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        loader_of(dataset, **wrong)
