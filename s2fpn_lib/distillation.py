"""Knowledge distillation: what a trained network says of every pixel, as a second target beside the label.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2; pixel by
pixel as in Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, equation 1.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from s2fpn_lib.checkpoint import load_model
from s2fpn_lib.model.blocks import resize_aligned


class Teacher:
    """A trained network, frozen, to learn from.

    Args:
        path_or_name: what `load_model` takes: a .safetensors file, a run directory or a released name.
        num_classes: the student's.
        device: where the student trains.

    Raises:
        CheckpointError: no such weights, or damaged ones.
        ValueError: the teacher knows another number of classes.
    """

    def __init__(self, path_or_name: str | Path, num_classes: int, device: torch.device):
        self.network = load_model(path_or_name, device=device).requires_grad_(False)
        if self.network.num_classes != num_classes:
            raise ValueError(
                f"the teacher {path_or_name} has {self.network.num_classes} classes, the student {num_classes}: "
                "distil from a network that was trained on the same classes"
            )

    def logits(self, images: Tensor) -> Tensor:
        """The teacher's (B, K, h, w) logits of uint8 (B, 3, H, W) images, at the resolution it computes them at."""
        with torch.no_grad():
            return self.network(self.network.preprocess(images), resize=False)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Scalar T² KL(softmax(teacher / T) || softmax(student / T)), the mean over all pixels, labelled or not.

    (B,K,h,w) student logits are resized to the teacher's (B,K,H,W), bilinear with align_corners=True as the network
    resizes its own. With a temperature T above 1 the classes that come second and third count for more; T² keeps the
    size of the gradient. The arithmetic is float32.
    """
    student = resize_aligned(student.float(), teacher.shape[-2:])
    divergence = nn.functional.kl_div(
        (student / temperature).log_softmax(1),
        (teacher.float() / temperature).log_softmax(1),
        reduction="none",
        log_target=True,
    )
    return temperature**2 * divergence.sum(1).mean()
