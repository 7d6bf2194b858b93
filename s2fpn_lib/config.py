"""What a training run is made of: one flat, frozen configuration. Named ones: `s2fpn_lib.config`."""

import math
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from s2fpn_lib.data import PUBLISHED_SCALES, Augment
from s2fpn_lib.losses import AUX_RESOLUTIONS, CRITERIA
from s2fpn_lib.model import PUBLISHED_MODELS
from s2fpn_lib.model.blocks import REVISIONS
from s2fpn_lib.validate import as_declared, did_you_mean

# MERGED presets: """Whole training recipes by name: the published ones and ours, as changes to the defaults of `TrainConfig`."""


# What the published train.py calls on its command line, and the field that does it here.
PUBLISHED_OPTIONS = {
    "max_epochs": "epochs",
    "train_type": "train_split",
    "input_size": "crop",
    "random_mirror": "flip",
    "random_scale": "scales",
    "num_workers": "workers",
    "gpus": "device",
    "cuda": "device",
}
# Fields that say how a run is carried out, not what it computes: they may change when a run is taken up again.
OPERATIONAL = (
    "data_root",
    "device",
    "devices",
    "nodes",
    "workers",
    "max_minutes",
    "checkpoint_every",
    "checkpoint_minutes",
)

CHOICES = {
    "revision": REVISIONS,
    "optimizer": ("adam", "adamw", "sgd"),
    "criterion": CRITERIA,
    "aux_resolution": AUX_RESOLUTIONS,
    "amp": ("off", "bf16", "fp16", "auto"),
    "checkpoint_rule": ("best-val", "last"),
}


@dataclass(frozen=True)
class TrainConfig:
    """A training run. `TrainConfig()` is the published CamVid recipe on whatever data there is; see `PRESETS`.

    Every field is a plain value that a notebook, a YAML file or JSON can hold; 0 and "" mean off or default where the
    comment says so. Equal configurations give bit-equal weights on one CPU, whatever `OPERATIONAL` fields say; split
    over several processes (`devices`, `nodes`) the same up to rounding, to the masks that dropout draws and to what
    `DeepSupervisionLoss` takes from each process's own part of the batch.
    """

    # data
    dataset: str = "auto"  # camvid, cityscapes, roadscenes; auto: camvid where found, else roadscenes
    data_root: str = ""  # folder of the dataset; empty: S2FPN_DATA, else the project's data/
    train_split: str = "train"  # train or trainval, with an optional filter: trainval:drive!=0016E5
    val_split: str = "val"  # split the checkpoint rule looks at; empty: no validation; never test
    crop: tuple[int, int] | None = None  # (height, width) of a training sample; None: the protocol's size
    scales: tuple[float, ...] = PUBLISHED_SCALES  # random scale, one of these
    scale_range: tuple[float, float] | None = None  # (lowest, highest): continuous scale instead of `scales`
    flip: bool = True  # mirror half of the samples
    photometric: float = 0.0  # strength of brightness, contrast and saturation changes
    color_cast: float = 0.0  # strength of the changes of single colours, as light of another colour makes them
    rare_class_crops: float = 0.0  # share of crops centred on a rare class
    # network
    model: str = "s2fpn18"
    revision: str = "v1"
    switches: dict[str, Any] = field(default_factory=dict)  # of build_model, e.g. {"ssam": False}
    normalization: str = ""  # empty: the encoder's own
    encoder_weights: str = ""  # "imagenet" or the path of a state dict; empty: none
    init_from: str = ""  # weights to start from: a .safetensors file, a run directory or a released name; empty: none
    # optimisation
    optimizer: str = "adam"
    lr: float = 3e-4
    encoder_lr: float = 0.0  # learning rate of the encoder; 0: the same
    momentum: float = 0.9  # of sgd
    weight_decay: float = 2e-4
    decay_all: bool = True  # False: no decay on biases, normalisation, PReLU slopes and other one-dimensional weights
    epochs: int = 150
    warmup: int = 500  # iterations, at most a tenth of the run (schedule.fit_warmup)
    warmup_start: float = 1 / 3  # factor on the learning rate at the first iteration
    poly_power: float = 0.9
    batch_size: int = 8  # of a step, over all processes together
    clip: float = 0.0  # largest norm of the gradient; 0: no clipping
    ema: float = 0.0  # decay of the averaged weights that are validated and saved; 0: no averaging
    # loss
    criterion: str = "cross_entropy"  # or ohem
    class_weights: float = 1.10  # c of the class weights 1/ln(c + share); 0: no weights
    aux_weight: float = 1.0  # of each auxiliary loss
    aux_resolution: str = "label"  # or own, cheaper
    ohem_threshold: float = 0.7
    ohem_min_kept: float = 1 / 16
    lovasz_weight: float = 0.0  # of the Lovász-softmax term beside the criterion; 0: none
    distill_from: str = ""  # a trained network that teaches this one: as init_from; empty: none
    distill_weight: float = 1.0  # of the distillation loss
    distill_temperature: float = 1.0  # divides both networks' logits in it
    # how it is carried out
    amp: str = "off"  # off, bf16, fp16; auto: what the device is fast at
    channels_last: bool = True
    compile: bool = False
    seed: int = 0
    device: str = "auto"  # cpu, cuda, cuda:1; auto: cuda where there is one
    devices: int = 1  # processes on each node: one a GPU, or CPU processes; each takes an equal part of every batch
    nodes: int = 1  # machines that train together, see train
    workers: int = 0  # loader processes (of each training process)
    max_minutes: float = 0.0  # stop at the last epoch's end that fits into this training time; 0: no limit
    eval_every: int = 1  # epochs; the last epoch is always validated
    eval_images: int = 0  # images of the validation split, evenly spread; 0: all
    checkpoint_every: int = 1  # epochs between training states; the last epoch always gets one
    checkpoint_minutes: float = 10.0  # save inside a long epoch, too, this often; 0: at epoch ends only
    checkpoint_rule: str = "best-val"  # or last: which weights the run hands over

    def __post_init__(self) -> None:
        for declared in fields(self):
            # JSON, YAML and notebooks have lists for tuples and ints for floats: stored as declared, so that equal
            # configurations compare and hash equal
            value = getattr(self, declared.name)
            try:
                object.__setattr__(self, declared.name, as_declared(value, _TYPES[declared.name]))
            except TypeError as error:
                raise TypeError(f"TrainConfig.{declared.name} is {error}") from None
        object.__setattr__(self, "model", PUBLISHED_MODELS.get(self.model, self.model))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for name in ("lr", "epochs", "batch_size", "eval_every", "checkpoint_every", "devices", "nodes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be above 0")
        for name in (
            "encoder_lr",
            "weight_decay",
            "warmup",
            "clip",
            "aux_weight",
            "lovasz_weight",
            "distill_weight",
            "poly_power",
            "workers",
            "seed",
            "max_minutes",
            "checkpoint_minutes",
            "eval_images",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must not be negative")
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size is {self.batch_size}, which {self.processes} processes (devices={self.devices}, "
                f"nodes={self.nodes}) cannot share equally: choose a multiple of {self.processes}"
            )
        for name in ("lr", "encoder_lr", "weight_decay", "clip"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number")
        if not 0 < self.distill_temperature < math.inf:
            raise ValueError(f"distill_temperature is {self.distill_temperature}; it must be a finite number above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it is a share below 1, such as 0.9, or 0 for none")
        if not 0 < self.warmup_start <= 1:
            raise ValueError(f"warmup_start is {self.warmup_start}; it is a factor above 0 and at most 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it is a decay below 1, such as 0.999, or 0 for none")
        if self.class_weights and self.class_weights <= 1:
            raise ValueError(
                f"class_weights is {self.class_weights}; it is the c > 1 of 1/ln(c + share), or 0 for none"
            )
        for name in ("train_split", "val_split"):
            if getattr(self, name).startswith("test"):
                raise ValueError(f"{name} is {getattr(self, name)!r}: the test split is for the final measurement only")
        if self.checkpoint_rule == "best-val" and not self.val_split:
            raise ValueError('checkpoint_rule "best-val" needs a val_split; without one use checkpoint_rule="last"')
        if self.checkpoint_rule == "best-val" and self.train_split == "trainval" and self.val_split == "val":
            raise ValueError(
                'checkpoint_rule "best-val" would choose by images that train_split="trainval" trains on; '
                'use checkpoint_rule="last"'
            )
        if self.init_from and self.encoder_weights:
            raise ValueError("init_from brings the encoder's weights, too: leave encoder_weights empty")
        self.augment()  # checks its own fields

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.devices * self.nodes

    def augment(self) -> Augment:
        """The augmentation that the fields describe."""
        return Augment(
            scales=self.scales,
            scale_range=self.scale_range,
            flip=self.flip,
            photometric=self.photometric,
            color_cast=self.color_cast,
            rare_class_crops=self.rare_class_crops,
        )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "TrainConfig":
        """The preset of that name with some fields changed.

        Raises ValueError for an unknown preset and TypeError for an unknown field, each with the nearest known one.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}.{did_you_mean(name, PRESETS)} Presets: {', '.join(PRESETS)}")
        return cls.from_dict({**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The configuration with these fields; an unknown name is a TypeError that suggests the nearest one."""
        known = [each.name for each in fields(cls)]
        for name in values:
            if name in PUBLISHED_OPTIONS:
                raise TypeError(
                    f"TrainConfig has no field {name!r}; the published {name} is {PUBLISHED_OPTIONS[name]!r}"
                )
            if name not in known:
                raise TypeError(
                    f"TrainConfig has no field {name!r}.{did_you_mean(name, known)} Fields: {', '.join(known)}"
                )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON holds them (tuples as lists); `from_dict` gives the same configuration back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def replace(self, **changes: Any) -> "TrainConfig":
        """A copy with some fields changed."""
        return self.from_dict({**self.to_dict(), **changes})

    def recipe(self) -> dict[str, Any]:
        """`to_dict` without the `OPERATIONAL` fields: what decides the result, and names a run."""
        return {name: value for name, value in self.to_dict().items() if name not in OPERATIONAL}


_TYPES = typing.get_type_hints(TrainConfig)


MODERN: dict[str, Any] = {
    "encoder_weights": "imagenet",
    "optimizer": "adamw",
    "lr": 1.5e-3,
    "encoder_lr": 5e-4,
    "weight_decay": 1e-2,
    "decay_all": False,
    "scale_range": (0.6, 2.0),
    "photometric": 0.3,
    "class_weights": 1.12,
    "aux_weight": 0.4,
    "aux_resolution": "own",
    "ema": 0.999,
    "clip": 1.0,
    "amp": "auto",
}
# First at the network's own resolution, from ImageNet, ...
LITE_CAMVID: dict[str, Any] = {
    **MODERN,
    "dataset": "camvid",
    "model": "s2fpn_lite",
    "crop": (256, 320),
    "photometric": 0.4,
    "rare_class_crops": 0.25,
    "epochs": 80,
    "warmup": 200,
    "eval_every": 5,
    "checkpoint_minutes": 3.0,
}
# ... then at twice the resolution, from the weights of that.
LITE_CAMVID_DOUBLE: dict[str, Any] = {
    **LITE_CAMVID,
    "switches": {"double_resolution": True},
    "encoder_weights": "",
    "lr": 6e-4,
    "encoder_lr": 2e-4,
    "epochs": 25,
    "scale_range": (0.5, 1.5),
}
# ... and on train and val, with the measure itself in the loss.
LITE_CAMVID_TRAINVAL: dict[str, Any] = {
    **LITE_CAMVID_DOUBLE,
    "train_split": "trainval",
    "val_split": "",  # trained on: its score would say nothing
    "checkpoint_rule": "last",
    "scale_range": (0.5, 1.75),
    "epochs": 30,
    "lovasz_weight": 0.5,
}
# ... and for mean IoU alone: class weights make pavement, fence and pedestrians too likely for it, and weaker colour
# changes leave the pictures nearer to those that are scored.
LITE_CAMVID_IOU: dict[str, Any] = {
    **LITE_CAMVID_TRAINVAL,
    "photometric": 0.1,
    "class_weights": 0.0,
    "lovasz_weight": 1.0,
    "lr": 4e-4,
    "encoder_lr": 1.3e-4,
    "epochs": 8,
    "warmup": 100,
}
# The modern recipe made short: small crops, so that a few minutes hold many steps.
QUICK: dict[str, Any] = {
    **MODERN,
    "model": "s2fpn_lite",
    "lr": 2e-3,
    "encoder_lr": 1e-3,
    "epochs": 8,
    "crop": (192, 256),
    "photometric": 0.2,
    "ema": 0.99,
    "eval_every": 2,
    "eval_images": 40,
}

# ImageNet encoders: the paper's text; the published code loads them and then initialises over them.
PRESETS: dict[str, dict[str, Any]] = {
    # The published CamVid recipe. Its README's command line says lr 4e-3; the paper's 3e-4 is used.
    "published-camvid": {
        "dataset": "camvid",
        "train_split": "trainval",
        "crop": (360, 480),
        "normalization": "camvid-mean",
        "encoder_weights": "imagenet",
        "checkpoint_rule": "last",  # trained on val, so there is nothing to choose by
        "eval_every": 10,
    },
    # The published Cityscapes recipe; lr is the default and the README's command line of the published train.py.
    "published-cityscapes": {
        "dataset": "cityscapes",
        "crop": (512, 1024),
        "normalization": "cityscapes-mean",
        "encoder_weights": "imagenet",
        "optimizer": "sgd",
        "lr": 4e-3,
        "weight_decay": 1e-4,
        "epochs": 500,
        "eval_every": 10,
    },
    # Ours: the same network with a current recipe.
    "modern": MODERN,
    # The released s2fpn_lite-camvid, in runs that begin with one another's weights (init_from). The first two train
    # on train, so that val can be looked at; the others on train and val, with nothing left to choose by.
    "lite-camvid": LITE_CAMVID,
    "lite-camvid-double": LITE_CAMVID_DOUBLE,
    "lite-camvid-trainval": LITE_CAMVID_TRAINVAL,
    # Whole images: strips as long as those of the final measurement.
    "lite-camvid-final": {
        **LITE_CAMVID_TRAINVAL,
        "crop": (360, 480),
        "batch_size": 4,
        "scale_range": (0.6, 1.75),
        "lr": 3e-4,
        "encoder_lr": 1e-4,
        "epochs": 3,
    },
    "lite-camvid-iou": LITE_CAMVID_IOU,
    # Two minutes on two CPU cores.
    "quick": QUICK,
    # Half a minute, to see that everything works.
    "glance": {**QUICK, "epochs": 3, "eval_every": 3, "eval_images": 20},
}
