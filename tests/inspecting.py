"""A network and a picture to inspect, and the protocol that they share."""

import torch

from s2fpn_lib.data import get_protocol
from s2fpn_lib.model import build_model

PROTOCOL = get_protocol("roadscenes")


def picture(height=64, width=96, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def network(**config):
    """With every vector, gamma and the norms among them, away from its start."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = build_model("s2fpn_lite", num_classes=PROTOCOL.num_classes, **config).eval()
    for tensor in model.state_dict().values():
        if tensor.dtype.is_floating_point and tensor.ndim <= 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.8 + 0.2)
    return model
