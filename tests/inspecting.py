"""Networks, an image, and inspections that the tests of the inspector share; the protocol is RoadScenes."""

import dataclasses
import functools

import torch

from s2fpn_lib.data import get_protocol
from s2fpn_lib.inspector import inspect
from s2fpn_lib.inspector.state import NamedModel, Picture
from s2fpn_lib.model import build_model

PROTOCOL = get_protocol("roadscenes")
SIZE = (45, 71)  # odd, so that no level divides it


def random_ids(limit, size=SIZE, seed=0):
    return torch.randint(0, limit, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_image(size=SIZE):
    return random_ids(256, (3, *size))


@functools.cache
def network(**config):
    """S²-FPN-Lite whose vectors (gamma and norms among them) differ from their initial values."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = build_model("s2fpn_lite", num_classes=PROTOCOL.num_classes, **config).eval()
    for tensor in model.state_dict().values():
        if tensor.dtype.is_floating_point and tensor.ndim <= 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.8 + 0.2)
    return model


def distribution(level, y, x):
    """v2: softmax of the products of the pixel's query with the keys, (L,)."""
    return (level.strip_max[0].T @ level.query[0, :, y, x]).softmax(0)


@functools.cache
def inspection(size=SIZE, **config):
    """The random image, with a label whose first row is ignored."""
    label = random_ids(PROTOCOL.num_classes, size, seed=1)
    label[0] = PROTOCOL.ignore_id
    model = NamedModel(f"<{config.get('revision', 'v1')}>", network(**config), {"checkpoint": "a.safetensors"})
    return inspect(model, Picture("street </script><b>", random_image(size), size, label), PROTOCOL)


def unlabeled(inspection):
    """The same inspection without a label."""
    return dataclasses.replace(inspection, picture=dataclasses.replace(inspection.picture, label=None))
