import numpy as np
import pytest

from s2fpn_lib.data import PROTOCOLS, get_protocol
from s2fpn_lib.data.cityscapes import to_label_ids, to_train_ids
from s2fpn_lib.data.protocols import CITYSCAPES_LABELS, Protocol
from s2fpn_lib.model import NORMALIZATIONS


def test_protocols_by_name():
    camvid = get_protocol("camvid-segnet-360x480")
    assert (camvid.num_classes, camvid.ignore_id, camvid.size) == (11, 11, (360, 480))
    assert camvid.classes[0] == "Sky"
    assert camvid.classes[10] == "Bicyclist"
    cityscapes = get_protocol("cityscapes-fine-1024x2048")
    assert (cityscapes.num_classes, cityscapes.ignore_id, cityscapes.size) == (19, 255, (1024, 2048))
    road = get_protocol("roadscenes")
    assert road.classes == camvid.classes
    assert road.palette == camvid.palette
    for protocol in PROTOCOLS.values():
        assert len(set(protocol.palette)) == protocol.num_classes, "two classes share a colour"


@pytest.mark.parametrize("dataset", ["camvid", "cityscapes"])
def test_the_published_input_subtracts_the_protocols_mean(dataset):
    """The network, which knows nothing of data, has the numbers again: they must be the same."""
    protocol = next(each for each in PROTOCOLS.values() if each.dataset == dataset)
    assert NORMALIZATIONS[f"{dataset}-mean"] == (protocol.mean_published, (1.0, 1.0, 1.0))


def test_unknown_protocol_names_the_nearest():
    with pytest.raises(KeyError, match="camvid-segnet-360x480"):
        get_protocol("camvid-segnet-360x408")


def test_a_protocol_whose_ignored_id_is_a_class_is_refused():
    with pytest.raises(ValueError, match="ignore_id 1"):
        Protocol("x", "x", (1, 1), ("a", "b"), ((0, 0, 0), (1, 1, 1)), 1, (0, 0, 0), (0, 0, 0), ("train",), "")


def test_cityscapes_table_against_the_ids_that_the_server_scores():
    scored = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert [row.label_id for row in CITYSCAPES_LABELS] == list(range(34))
    assert [row.label_id for row in CITYSCAPES_LABELS if row.train_id != 255] == scored
    label_ids = np.arange(34, dtype=np.uint8)
    train_ids = to_train_ids(label_ids)
    assert train_ids[scored].tolist() == list(range(19))
    assert (np.delete(train_ids, scored) == 255).all()
    assert to_label_ids(train_ids[scored]).tolist() == scored
    assert to_label_ids(np.array([255], dtype=np.uint8)).tolist() == [0]


def test_a_label_id_beyond_the_table_is_an_error():
    with pytest.raises(ValueError, match="34"):
        to_train_ids(np.array([[34]], dtype=np.uint8))
