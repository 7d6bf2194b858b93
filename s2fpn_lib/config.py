"""`TrainConfig`, everything that decides a training run, and the named presets."""

import math
import typing
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from s2fpn_lib.data.transforms import PUBLISHED_SCALES, Augment
from s2fpn_lib.losses import AUX_RESOLUTIONS, CRITERIA
from s2fpn_lib.model import PUBLISHED_MODELS
from s2fpn_lib.model.blocks import REVISIONS
from s2fpn_lib.optim import OPTIMIZERS
from s2fpn_lib.validate import as_declared, did_you_mean

# Options of the published train.py, and the fields that correspond to them
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
# Fields that do not change what a run computes: a resumed run may change them
OPERATIONAL = (
    *("data_root", "device", "devices", "nodes", "workers"),
    *("max_minutes", "checkpoint_every", "checkpoint_minutes"),
)
# Earlier names. Fields are still stored under them in config.json and in the hashes that name run folders, so that
# earlier runs resume; presets and changes given under them raise a warning.
RENAMED_FIELDS = {"colour_cast": "color_cast"}
RENAMED_PRESETS = {"glance": "demo"}

CHOICES = {
    "revision": REVISIONS,
    "optimizer": OPTIMIZERS,
    "criterion": CRITERIA,
    "aux_resolution": AUX_RESOLUTIONS,
    "amp": ("off", "bf16", "fp16", "auto"),
    "checkpoint_rule": ("best-val", "last"),
}
# Names of fields, the condition on each of their values, and the condition in words
LIMITS = (
    ("lr epochs batch_size eval_every checkpoint_every devices nodes", lambda v: v > 0, "above 0"),
    ("encoder_lr weight_decay clip poly_power warmup workers seed", lambda v: v >= 0, "0 or more"),
    ("aux_weight lovasz_weight distill_weight", lambda v: v >= 0, "0 or more"),
    ("max_minutes checkpoint_minutes eval_images", lambda v: v >= 0, "0 or more"),
    ("lr encoder_lr weight_decay clip", math.isfinite, "a finite number"),
    ("distill_temperature", lambda v: 0 < v < math.inf, "a finite number above 0"),
    ("momentum", lambda v: 0 <= v < 1, "at least 0 and below 1, such as 0.9"),
    ("warmup_start", lambda v: 0 < v <= 1, "a factor above 0 and at most 1"),
    ("ema", lambda v: 0 <= v < 1, "a decay below 1, such as 0.999, or 0 for no averaging"),
    ("class_weights", lambda v: v == 0 or v > 1, "the c > 1 of 1/ln(c + share), or 0 for no weights"),
    ("train_split val_split", lambda v: not v.startswith("test"), "another split: test is for the final measurement"),
)


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run. `TrainConfig()` is the published CamVid recipe; see also `PRESETS`.

    Every field is a plain value that a notebook, a YAML file, or JSON can hold. Two runs whose fields are equal, except
    for the `OPERATIONAL` ones, give bit-equal weights on one CPU. Runs on several processes (`devices`, `nodes`) agree
    up to rounding, the masks that dropout draws, and what `DeepSupervisionLoss` computes per process.

    Raises:
        TypeError: a field has another type than declared.
        ValueError: a field is out of range, or two fields contradict each other; the message says what to change.
    """

    # data
    dataset: str = "auto"  # camvid, cityscapes, roadscenes; auto: camvid where found, else roadscenes
    data_root: str = ""  # folder of the dataset; empty: S2FPN_DATA, else the project's data/
    train_split: str = "train"  # train or trainval, with an optional filter: trainval:drive!=0016E5
    val_split: str = "val"  # split for the checkpoint rule, never test; empty: no validation
    crop: tuple[int, int] | None = None  # (height, width) of a training sample; None: the protocol's size
    scales: tuple[float, ...] = PUBLISHED_SCALES  # random scale: one of these
    scale_range: tuple[float, float] | None = None  # (lowest, highest) of a continuous scale, instead of `scales`
    flip: bool = True  # mirror half of the samples
    photometric: float = 0.0  # strength of brightness, contrast, and saturation changes
    color_cast: float = 0.0  # strength of changes of single color channels, as under light of another color
    rare_class_crops: float = 0.0  # share of crops centered on a rare class
    # network
    model: str = "s2fpn18"
    revision: str = "v1"
    switches: dict[str, Any] = field(default_factory=dict)  # of build_model, e.g. {"ssam": False}
    normalization: str = ""  # empty: the encoder's own
    encoder_weights: str = ""  # "imagenet" or the path of a state dict; empty: none
    init_from: str = ""  # weights to start from: a .safetensors file, a run directory or a released name; empty: none
    # optimization
    optimizer: str = "adam"
    lr: float = 3e-4
    encoder_lr: float = 0.0  # learning rate of the encoder; 0: the same
    momentum: float = 0.9  # of sgd
    weight_decay: float = 2e-4
    decay_all: bool = True  # False: no decay on biases, normalization, PReLU slopes, and other one-dimensional weights
    epochs: int = 150
    warmup: int = 500  # iterations, at most a tenth of the run
    warmup_start: float = 1 / 3  # factor on the learning rate at the first iteration
    poly_power: float = 0.9
    batch_size: int = 8  # per step, over all processes
    clip: float = 0.0  # largest norm of the gradient; 0: no clipping
    ema: float = 0.0  # decay of the averaged weights, which are validated and saved; 0: no averaging
    # loss
    criterion: str = "cross_entropy"  # or ohem
    class_weights: float = 1.10  # c of the class weights 1/ln(c + share); 0: no weights
    aux_weight: float = 1.0  # of each auxiliary loss
    aux_resolution: str = "label"  # or own, cheaper
    ohem_threshold: float = 0.7
    ohem_min_kept: float = 1 / 16
    lovasz_weight: float = 0.0  # of the Lovász-softmax term beside the criterion; 0: none
    distill_from: str = ""  # teacher network, given like init_from; empty: none
    distill_weight: float = 1.0  # of the distillation loss
    distill_temperature: float = 1.0  # divides the logits of both networks
    # execution
    amp: str = "off"  # off, bf16, fp16; auto: the fast precision of the device
    channels_last: bool = True
    compile: bool = False
    seed: int = 0
    device: str = "auto"  # cpu, cuda, cuda:1; auto: cuda where there is one
    devices: int = 1  # processes per node, one per GPU or CPU processes; each gets an equal part of every batch
    nodes: int = 1  # machines that train together, see `train`
    workers: int = 0  # loader processes per training process
    max_minutes: float = 0.0  # stop after the last epoch that fits into this training time; 0: no limit
    eval_every: int = 1  # epochs; the last epoch is always validated
    eval_images: int = 0  # evenly spaced images of the validation split; 0: all
    checkpoint_every: int = 1  # epochs between training states; the last epoch always gets one
    checkpoint_minutes: float = 10.0  # between training states inside a long epoch; 0: only after epochs
    checkpoint_rule: str = "best-val"  # or last: the weights that the run returns

    def __post_init__(self) -> None:
        for name, declared in _TYPES.items():
            try:
                # JSON and YAML have lists for tuples and ints for floats; equal configurations must hash equal
                object.__setattr__(self, name, as_declared(getattr(self, name), declared))
            except TypeError as error:
                raise TypeError(f"{name} is {error}") from None
        object.__setattr__(self, "model", PUBLISHED_MODELS.get(self.model, self.model))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for names, holds, requirement in LIMITS:
            for name in names.split():
                if not holds(getattr(self, name)):
                    raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {requirement}")
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size is {self.batch_size}, which {self.processes} processes (devices={self.devices}, "
                f"nodes={self.nodes}) cannot share equally: choose a multiple of {self.processes}"
            )
        if self.checkpoint_rule == "best-val" and not self.val_split:
            raise ValueError('checkpoint_rule "best-val" needs a val_split; without one use checkpoint_rule="last"')
        if self.checkpoint_rule == "best-val" and self.train_split == "trainval" and self.val_split == "val":
            raise ValueError(
                'checkpoint_rule "best-val" would choose by images that train_split="trainval" trains on; '
                'use checkpoint_rule="last"'
            )
        if self.init_from and self.encoder_weights:
            raise ValueError("init_from includes the encoder's weights: leave encoder_weights empty")
        self.augment()  # checks its own fields

    @property
    def processes(self) -> int:
        """Number of processes that train together."""
        return self.devices * self.nodes

    def augment(self) -> Augment:
        """The augmentation that the fields describe."""
        return Augment(**self.only("scales", "scale_range", "flip", "photometric", "color_cast", "rare_class_crops"))

    def only(self, *names: str) -> dict[str, Any]:
        """The named fields, as keyword arguments of what they configure."""
        return {name: getattr(self, name) for name in names}

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "TrainConfig":
        """The preset called `name` with some fields changed.

        Raises ValueError for an unknown preset and TypeError for an unknown field, with the nearest known name.
        """
        name = _renamed(name, RENAMED_PRESETS, "preset")
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}.{did_you_mean(name, PRESETS)} Presets: {', '.join(PRESETS)}")
        return cls.from_dict({**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The configuration with these fields; an unknown name is a TypeError that suggests the nearest one."""
        values = {_renamed(name, RENAMED_FIELDS, "field"): value for name, value in values.items()}
        for name in values:
            if name not in _TYPES:
                published = f" It is called {PUBLISHED_OPTIONS[name]!r} here." if name in PUBLISHED_OPTIONS else ""
                hint = published or did_you_mean(name, _TYPES)
                raise TypeError(f"TrainConfig has no field {name!r}.{hint} Fields: {', '.join(_TYPES)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON holds them (lists for tuples); `from_dict` returns an equal configuration."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def replace(self, **changes: Any) -> "TrainConfig":
        """A copy with some fields changed."""
        return self.from_dict({**self.to_dict(), **changes})

    def recipe(self) -> dict[str, Any]:
        """What decides the result and names a run: the fields that are not `OPERATIONAL`, under their stored names."""
        stored = {new: old for old, new in RENAMED_FIELDS.items()}
        return {stored.get(name, name): value for name, value in self.to_dict().items() if name not in OPERATIONAL}


_TYPES = typing.get_type_hints(TrainConfig)


def _renamed(name: str, renamed: Mapping[str, str], what: str) -> str:
    """The present name of a field or preset; an earlier name still works, with a warning."""
    if name not in renamed:
        return name
    warnings.warn(f"The {what} {name!r} is now called {renamed[name]!r}.", FutureWarning, stacklevel=3)
    return renamed[name]


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
# The stages of the released s2fpn_lite-camvid; each starts from the weights of the one before it (init_from). The first
# two are trained on train and scored on val: at the network's own resolution from ImageNet weights, then at twice that.
LITE_CAMVID = dict(
    MODERN,
    photometric=0.4,
    rare_class_crops=0.25,
    warmup=200,
    eval_every=5,
    checkpoint_minutes=3.0,
    dataset="camvid",
    model="s2fpn_lite",
    crop=(256, 320),
    epochs=80,
)
DOUBLED = {"double_resolution": True}
LITE_CAMVID_DOUBLE = dict(
    LITE_CAMVID, switches=DOUBLED, encoder_weights="", lr=6e-4, encoder_lr=2e-4, epochs=25, scale_range=(0.5, 1.5)
)
# Then train and val, so that no validation is left, with a surrogate of mean IoU (Lovász-softmax) in the loss.
LITE_CAMVID_TRAINVAL = dict(
    LITE_CAMVID_DOUBLE,
    train_split="trainval",
    val_split="",
    checkpoint_rule="last",
    scale_range=(0.5, 1.75),
    epochs=30,
    lovasz_weight=0.5,
)
# The modern recipe for a few minutes on a CPU: small crops, so that there is time for many steps.
QUICK = dict(
    MODERN,
    model="s2fpn_lite",
    crop=(192, 256),
    epochs=8,
    eval_every=2,
    eval_images=40,
    lr=2e-3,
    encoder_lr=1e-3,
    photometric=0.2,
    ema=0.99,
)

# ImageNet encoders as in the paper's text; the published code loads them and then initializes over them.
PRESETS: dict[str, dict[str, Any]] = {
    # The published CamVid recipe with the paper's lr of 3e-4 (the published README's command line says 4e-3).
    "published-camvid": {
        "dataset": "camvid",
        "train_split": "trainval",
        "crop": (360, 480),
        "normalization": "camvid-mean",
        "encoder_weights": "imagenet",
        "checkpoint_rule": "last",  # val is trained on
        "eval_every": 10,
    },
    # The published Cityscapes recipe with the lr of the published README's command line.
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
    "modern": MODERN,  # the same network with a current recipe
    "lite-camvid": LITE_CAMVID,
    "lite-camvid-double": LITE_CAMVID_DOUBLE,
    "lite-camvid-trainval": LITE_CAMVID_TRAINVAL,
    # Whole images: strips as long as in the evaluation.
    "lite-camvid-final": dict(
        LITE_CAMVID_TRAINVAL,
        lr=3e-4,
        encoder_lr=1e-4,
        epochs=3,
        crop=(360, 480),
        batch_size=4,
        scale_range=(0.6, 1.75),
    ),
    # No class weights, which make pavement, fence, and pedestrians too likely for mean IoU, and weaker color changes.
    "lite-camvid-iou": dict(
        LITE_CAMVID_TRAINVAL,
        lr=4e-4,
        encoder_lr=1.3e-4,
        epochs=8,
        warmup=100,
        photometric=0.1,
        class_weights=0.0,
        lovasz_weight=1.0,
    ),
    "quick": QUICK,  # two minutes on two CPU cores
    "demo": dict(QUICK, epochs=3, eval_every=3, eval_images=20),  # half a minute, to see that everything works
}
