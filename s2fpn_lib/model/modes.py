"""How a model runs: in evaluation mode for a while, and in which precision."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of autocast


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Runs the block with `model` in evaluation mode and restores the mode of every submodule afterwards; unlike
    `model.train(was_training)`, also of those that are frozen in evaluation mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
