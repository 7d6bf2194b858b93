"""`TrainConfig`, everything that decides a training run, and the named recipes of presets.toml."""

import math
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import InitVar, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from s2fpn_lib.checkpoint import recorded_network
from s2fpn_lib.data.custom import is_description
from s2fpn_lib.data.transforms import PUBLISHED_SCALES, Augment
from s2fpn_lib.losses import AUX_RESOLUTIONS, CRITERIA
from s2fpn_lib.model import ENCODERS, PUBLISHED_MODELS, Switches
from s2fpn_lib.model.blocks import REVISIONS
from s2fpn_lib.optim import OPTIMIZERS
from s2fpn_lib.validate import as_declared, did_you_mean

PRESETS: dict[str, dict[str, Any]] = {}  # {name: fields}, those of its `base`, a recipe above it, included
for _name, _fields in tomllib.loads(Path(__file__).with_name("presets.toml").read_text(encoding="utf-8")).items():
    PRESETS[_name] = (PRESETS[_fields.pop("base")] if "base" in _fields else {}) | _fields
# Options of the published train.py, and the fields that correspond to them
PUBLISHED_OPTIONS = {"max_epochs": "epochs", "train_type": "train_split", "input_size": "crop", "random_mirror": "flip"}
PUBLISHED_OPTIONS |= {"random_scale": "scales", "num_workers": "workers", "gpus": "device", "cuda": "device"}
# Fields that a resumed run may change: they do not change what it computes (init_changes only permits what others say)
OPERATIONAL = ("data_root", "device", "devices", "nodes", "workers", "max_minutes", "checkpoint_every")
OPERATIONAL += ("checkpoint_minutes", "replay_check", "init_changes")
NETWORK = ("model", "revision", "switches", "normalization")  # what init_from decides where the user does not
# Earlier names, under which fields are still stored in config.json and hashed, so that earlier runs resume
RENAMED_FIELDS = {"colour_cast": "color_cast"}

CHOICES = {"revision": REVISIONS, "optimizer": OPTIMIZERS, "criterion": CRITERIA, "aux_resolution": AUX_RESOLUTIONS}
CHOICES |= {"amp": ("off", "bf16", "fp16", "auto"), "checkpoint_rule": ("best-val", "last")}
# Names of fields, the condition on each of their values, and the condition in words
LIMITS = (
    ("lr epochs batch_size eval_every checkpoint_every devices nodes", lambda v: v > 0, "above 0"),
    ("encoder_lr weight_decay clip poly_power warmup workers seed aux_weight", lambda v: v >= 0, "0 or more"),
    ("lovasz_weight distill_weight max_minutes checkpoint_minutes", lambda v: v >= 0, "0 or more"),
    ("replay_check eval_images", lambda v: v >= 0, "0 or more"),
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

    Two runs whose fields are equal, except for the `OPERATIONAL` ones, give bit-equal weights on one CPU. Runs on
    several processes (`devices`, `nodes`) agree up to rounding, the masks that dropout draws, and what
    `DeepSupervisionLoss` computes per process.

    Raises TypeError for another type than declared, ValueError for a value out of range or fields that contradict.
    """

    # data
    dataset: str = "auto"  # camvid, cityscapes, roadscenes, a .yaml file; auto: camvid where found, else roadscenes
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
    # network: what is empty, and switches that are not named, are those of init_from, else the published ones
    model: str = ""  # s2fpn18, ...
    revision: str = ""  # v1 or v2
    switches: dict[str, Any] = field(default_factory=dict)  # of build_model, e.g. {"ssam": False}
    normalization: str = ""  # empty and no init_from: the encoder's own
    encoder_weights: str = ""  # "imagenet" or the path of a state dict; empty: none
    init_from: str = ""  # weights to start from: a file (.safetensors, the author's .pth), run folder, or released name
    init_changes: tuple[str, ...] = ()  # "normalization" and switches in which the network may differ from init_from's
    # optimization
    optimizer: str = "adam"  # adam, adamw, or sgd
    lr: float = 3e-4  # highest learning rate
    encoder_lr: float = 0.0  # learning rate of the encoder; 0: the same
    momentum: float = 0.9  # of sgd
    weight_decay: float = 2e-4  # with adam an L2 penalty, as published
    decay_all: bool = True  # False: no decay on biases, normalization, PReLU slopes, and other one-dimensional weights
    epochs: int = 150  # passes over the training split
    warmup: int = 500  # iterations, at most a tenth of the run
    warmup_start: float = 1 / 3  # factor on the learning rate at the first iteration
    poly_power: float = 0.9  # of the decay to 0 after the warm-up
    batch_size: int = 8  # per step, over all processes
    clip: float = 0.0  # largest norm of the gradient; 0: no clipping
    ema: float = 0.0  # decay of the averaged weights, which are validated and saved; 0: no averaging
    # loss
    criterion: str = "cross_entropy"  # or ohem
    class_weights: float = 1.10  # c of the class weights 1/ln(c + share); 0: no weights
    aux_weight: float = 1.0  # of each auxiliary loss
    aux_resolution: str = "label"  # or own, cheaper
    ohem_threshold: float = 0.7  # ohem keeps pixels whose true class is at most this probable
    ohem_min_kept: float = 1 / 16  # and at least this share of all pixels
    lovasz_weight: float = 0.0  # of the Lovász-softmax term beside the criterion; 0: none
    distill_from: str = ""  # teacher network, given like init_from; empty: none
    distill_weight: float = 1.0  # of the distillation loss
    distill_temperature: float = 1.0  # divides the logits of both networks
    # execution
    amp: str = "off"  # off, bf16, fp16; auto: the fast precision of the device
    channels_last: bool = True  # memory layout; on CUDA without effect on networks with depthwise convolutions
    compile: bool = False  # the network by torch.compile
    seed: int = 0  # of initialization, order, augmentation, and dropout
    device: str = "auto"  # cpu, cuda, cuda:1; auto: cuda where there is one
    devices: int = 1  # processes per node, one per GPU or CPU processes; each gets an equal part of every batch
    nodes: int = 1  # machines that train together, see `train`
    workers: int = 0  # loader processes per training process
    max_minutes: float = 0.0  # stop after the last epoch that fits into this training time; 0: no limit
    eval_every: int = 1  # epochs; the last epoch is always validated
    eval_images: int = 0  # evenly spaced images of the validation split; 0: all
    checkpoint_every: int = 1  # epochs between training states; the last epoch always gets one
    checkpoint_minutes: float = 10.0  # between training states inside a long epoch; 0: only after epochs
    replay_check: int = 0  # every so many steps, compute a step twice and compare the bits, see `replay`; 0: never
    checkpoint_rule: str = "best-val"  # or last: the weights that the run returns
    stored: InitVar[bool] = False  # the network is complete as given; `init_from` is not asked and may be gone

    def __post_init__(self, stored: bool) -> None:
        for name, declared in _TYPES.items():
            try:  # JSON and YAML have lists for tuples and ints for floats; equal configurations must hash equal
                self._set(**{name: as_declared(getattr(self, name), declared)})
            except TypeError as error:
                raise TypeError(f"{name} is {error}") from None
        self._set(model=PUBLISHED_MODELS.get(self.model, self.model))
        # what `replace` must not take from another checkpoint
        self._set(_given={name: value for name, value in self.only(*NETWORK).items() if value})
        if self.init_from and not stored:
            self._continue_network()
        self._set(model=self.model or "s2fpn18", revision=self.revision or "v1")
        if is_description(self.dataset):
            self._set(dataset=str(Path(self.dataset).expanduser().absolute()))
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
        seen = self.train_split == "trainval" and self.val_split == "val"
        if self.checkpoint_rule == "best-val" and (seen or not self.val_split):
            problem = 'would choose by images that train_split="trainval" trains on' if seen else "needs a val_split"
            raise ValueError(f'checkpoint_rule "best-val" {problem}; use checkpoint_rule="last"')
        if self.init_from and self.encoder_weights:
            raise ValueError("init_from includes the encoder's weights: leave encoder_weights empty")
        self.augment()  # checks its own fields

    def _set(self, **values: Any) -> None:
        """Sets attributes while a configuration is built; afterwards it is frozen."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _continue_network(self) -> None:
        """Takes over from `init_from` what is not given. Raises ValueError for a given value that contradicts it and
        that `init_changes` does not name."""
        for name in self.init_changes:
            if name not in (known := ["normalization", *Switches.__dataclass_fields__]):
                hint = did_you_mean(name, known)
                raise ValueError(f"init_changes holds {name!r}.{hint} It may hold {', '.join(known)}")
        given = {"name": self.model, **self.only("revision", "normalization")}
        given = {name: value for name, value in given.items() if value} | self.switches
        recorded = recorded_network(self.init_from)
        before = {**asdict(Switches()), **recorded} if "name" in recorded else {}
        for name, value in given.items():
            if name in before and value != before[name] and name not in self.init_changes:
                field = "model" if name == "name" else name
                advice = f"leave {field} out, and it is taken over"
                if field not in ("model", "revision"):
                    advice += f"; if the difference is deliberate, add {field!r} to init_changes"
                found = f"{field} is {value!r}, but the network of {self.init_from!r} has {before[name]!r}"
                raise ValueError(f"{found}: {advice}")
        network = {**recorded, **given}
        network.pop("num_classes", None)
        model, revision, normalization = (network.pop(name, "") for name in ("name", "revision", "normalization"))
        if not self.normalization and model in ENCODERS and normalization == ENCODERS[model].normalization:
            normalization = ""  # one form of a recipe, and one hash
        self._set(model=model, revision=revision, switches=network, normalization=normalization)

    @property
    def processes(self) -> int:
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

        With `init_from`, the network is that of the checkpoint, not that of the preset. Exceptions are what the
        preset's `init_changes` names, and the author's checkpoints, which do not record their network.

        Raises ValueError for an unknown preset and TypeError for an unknown field, with the nearest known name.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}.{did_you_mean(name, PRESETS)} Presets: {', '.join(PRESETS)}")
        values = dict(PRESETS[name])
        changes = {field: value for field, value in changes.items() if value != "" or field not in NETWORK[:2]}
        given = {field: changes[field] for field in NETWORK if changes.get(field)}
        deliberate = changes.get("init_changes", values.get("init_changes", ()))
        if "switches" not in changes:
            given["switches"] = {each: on for each, on in values.get("switches", {}).items() if each in deliberate}
        if changes.get("init_from"):
            values.pop("encoder_weights", None)
            if "name" in recorded_network(changes["init_from"]):
                values = {field: value for field, value in values.items() if field not in NETWORK} | given
        config = cls(**_known({**values, **changes}))
        config._set(_given=given)
        return config

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The configuration with these fields; TypeError for an unknown one. Values with a whole network, as those of
        config.json, are taken as they are, also where the file of `init_from` is gone; digests of data are left out."""
        values = _known({name: value for name, value in values.items() if name != "data"})
        return cls(**values, stored=values.keys() >= set(NETWORK))

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON holds them (lists for tuples); `from_dict` returns an equal configuration."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def replace(self, **changes: Any) -> "TrainConfig":
        """A copy with some fields changed."""
        values = {**self.to_dict(), **changes}
        asked = bool(values.get("init_from") and changes.keys() & {"init_from", "init_changes", *NETWORK})
        if asked:
            values = {**values, **dict.fromkeys(NETWORK, ""), "switches": {}, **self._given, **changes}
        config = TrainConfig(**_known(values), stored=not asked)
        config._set(_given=self._given | {name: changes[name] for name in NETWORK if name in changes})
        return config

    def recipe(self) -> dict[str, Any]:
        """What decides the result and names a run: the fields that are not `OPERATIONAL`, under their stored names."""
        stored = {new: old for old, new in RENAMED_FIELDS.items()}
        return {stored.get(name, name): value for name, value in self.to_dict().items() if name not in OPERATIONAL}


_TYPES = {each.name: typing.get_type_hints(TrainConfig)[each.name] for each in fields(TrainConfig)}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields under their present names; TypeError for an unknown one."""
    values = {RENAMED_FIELDS.get(name, name): value for name, value in values.items()}
    for name in values:
        if name not in _TYPES:
            published = f" It is called {PUBLISHED_OPTIONS[name]!r} here." if name in PUBLISHED_OPTIONS else ""
            hint = published or did_you_mean(name, _TYPES)
            raise TypeError(f"TrainConfig has no field {name!r}.{hint} Fields: {', '.join(_TYPES)}")
    return values
