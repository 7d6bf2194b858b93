"""The optimizer that a configuration asks for, over the model's parameter groups."""

from typing import Any

import torch
from torch import nn

from s2fpn_lib.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam (weight decay as L2 penalty, as published), AdamW or SGD with momentum; fused into one kernel a group."""
    groups = parameter_groups(model, config)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, fused=fused)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, fused=fused)


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Encoder and decoder parameters with their learning rates, the decoder last; without `decay_all` each again apart
    in weights with decay and one-dimensional parameters (biases, normalisation, slopes, gates) without."""
    groups = []
    for part, parameters in model.parameter_groups().items():
        lr = config.encoder_lr if part == "encoder" and config.encoder_lr else config.lr
        decayed = [p for p in parameters if config.decay_all or p.ndim > 1]
        exempt = [p for p in parameters if not config.decay_all and p.ndim <= 1]
        groups += [
            {"params": chosen, "lr": lr, "weight_decay": decay}
            for chosen, decay in ((decayed, config.weight_decay), (exempt, 0.0))
            if chosen
        ]
    return groups
