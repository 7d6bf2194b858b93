import pytest
from torchvision.datasets import Cityscapes

from s2fpn_lib.data import PROTOCOLS, get_protocol
from s2fpn_lib.data.protocols import Protocol


def test_protocols_by_name():
    camvid = get_protocol("camvid-segnet-360x480")
    assert (camvid.num_classes, camvid.ignore_id, camvid.size) == (11, 11, (360, 480))
    assert camvid.classes[0] == "Sky"
    assert camvid.classes[10] == "Bicyclist"
    cityscapes = get_protocol("cityscapes-fine-1024x2048")
    assert (cityscapes.num_classes, cityscapes.ignore_id, cityscapes.size) == (19, 255, (1024, 2048))
    scored = {label.name: label.color for label in Cityscapes.classes if not label.ignore_in_eval}
    assert dict(zip(cityscapes.classes, cityscapes.palette, strict=True)) == scored
    assert list(cityscapes.classes) == list(scored)
    road = get_protocol("roadscenes")
    assert road.classes == camvid.classes
    assert road.palette == camvid.palette
    for protocol in PROTOCOLS.values():
        assert len(set(protocol.palette)) == protocol.num_classes, "two classes share a color"


def test_unknown_protocol_names_the_nearest():
    with pytest.raises(KeyError, match="camvid-segnet-360x480"):
        get_protocol("camvid-segnet-360x408")


def test_a_protocol_whose_ignored_id_is_a_class_is_refused():
    with pytest.raises(ValueError, match="ignore_id 1"):
        Protocol("x", "x", (1, 1), ("a", "b"), ((0, 0, 0), (1, 1, 1)), 1, (0, 0, 0), "")
