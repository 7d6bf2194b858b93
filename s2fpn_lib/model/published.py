"""The author's checkpoint layout: which published entry belongs to which parameter, and loading one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from s2fpn_lib.model.s2fpn import S2FPN
from s2fpn_lib.model.state_dicts import read_tensors

# What the published command lines call the network, and its name here.
PUBLISHED_MODELS = {"SSFPN": "s2fpn18"}

# (our name, published name) as regular expressions, the first match wins; \1 is what both have in common.
_RENAMES = {
    "v1": (
        (r"(apf\d)\.ssam\.shared\.weight", r"\1.sa.conv_sh.weight"),
        (r"(apf\d)\.ssam\.bn_max\.", r"\1.sa.bn_sh1."),
        (r"(apf\d)\.ssam\.bn_avg\.", r"\1.sa.bn_sh2."),
        (r"(apf\d)\.ssam\.fuse\.", r"\1.sa.fuse.conv."),
        (r"(apf\d)\.ssam\.", r"\1.sa."),
        (r"head\.", "classifier.fc.conv."),
    ),
    "v2": (
        (r"(apf\d)\.ssam\.attention\.shared\.weight", r"\1.sa.tr.0.attn.conv_sh.weight"),
        (r"(apf\d)\.ssam\.attention\.bn_max\.", r"\1.sa.tr.0.attn.bn_sh1."),
        (r"(apf\d)\.ssam\.attention\.bn_query\.", r"\1.sa.tr.0.attn.bn_sh2."),
        (r"(apf\d)\.ssam\.attention\.value\.", r"\1.sa.tr.0.attn.conv_v."),
        (r"(apf\d)\.ssam\.attention\.augment\.", r"\1.sa.tr.0.attn.augmment_conv."),
        (r"(apf\d)\.ssam\.attention\.(fuse|fuse_out)\.", r"\1.sa.tr.0.attn.\2.conv."),
        (r"(apf\d)\.ssam\.attention\.", r"\1.sa.tr.0.attn."),
        (r"(apf\d)\.ssam\.mlp\.dilated2\.", r"\1.sa.tr.0.mlp.dconv1."),
        (r"(apf\d)\.ssam\.mlp\.dilated4\.", r"\1.sa.tr.0.mlp.dconv2."),
        (r"(apf\d)\.ssam\.mlp\.fuse\.", r"\1.sa.tr.0.mlp.fuse.conv."),
        (r"(gfu\d)\.s2\.0\.", r"\1.s2.0.conv."),
        (r"head\.", "seghead.fc.conv."),
    ),
}
_COMMON_RENAMES = (
    (r"encoder\.conv1\.", "conv1_x."),
    (r"encoder\.bn1\.", "bn1."),
    (r"(apf\d)\.frb\.", r"\1.FRB."),
    (r"(apf\d)\.crb\.reduce\.", r"\1.ca.conv_pool.0.conv."),
    (r"(apf\d)\.crb\.expand\.", r"\1.ca.conv_pool.2.conv."),
    (r"(apf\d)\.out\.", r"\1.apf."),
    (r"(gfu\d)\.conv2\.", r"\1.conv2.0.conv."),
)
# What the published code stores and never uses, beside the batch norms and slopes of plain convolutions.
_ALWAYS_DEAD = re.compile(r".*\.conv_res\.(weight|bias)|.*\.conv_sh\.bias|down[2-5]\..*")


def published_name(name: str, revision: str) -> str:
    """The key under which the published checkpoint of `revision` stores our parameter or buffer `name`."""
    if match := re.match(r"encoder\.layer(\d)\.", name):
        return f"conv{int(match[1]) + 1}_x." + name[match.end() :]
    if match := re.match(r"project\.(\d)\.", name):
        return f"down{int(match[1]) + 2}." + name[match.end() :]
    if match := re.match(r"auxiliary\.(\d)\.", name):
        inner = name[match.end() :].replace("2.weight", "2.conv.weight")
        return f"apf{int(match[1]) + 1}.classifier.{inner}"
    for pattern, replacement in (*_RENAMES[revision], *_COMMON_RENAMES):
        if re.match(pattern, name):
            return re.sub(rf"^{pattern}", replacement, name)
    return name


def load_published(model: S2FPN, source: str | Path | Mapping[str, Any]) -> S2FPN:
    """Load a checkpoint in the author's layout into `model` and return it (in the mode it was in).

    source: a path, read without running any of its code; a checkpoint dict `{"epoch": int, "model": state_dict}`; or a
    bare state dict. Keys may carry a `module.` prefix. Entries that the published code stores without using them are
    ignored. Raises KeyError naming what is missing or foreign, ValueError for a shape that does not fit, RuntimeError
    for a file that cannot be read; the model is then unchanged.

    The published weights expect the published input: build with `normalization="camvid-mean"` or "cityscapes-mean"
    when images go through `model.preprocess`.
    """
    state = _state_dict(source)
    revision = model.config["revision"]
    own = model.state_dict()
    wanted = {published_name(name, revision): name for name in own}
    missing = sorted(key for key in wanted if key not in state and not key.endswith("num_batches_tracked"))
    foreign = sorted(key for key in state if key not in wanted and not _is_dead(key, state, wanted))
    if missing or foreign:
        raise KeyError(
            f"this is not a {revision} checkpoint of {model.config['name']}: "
            + "; ".join(_named(what, keys) for what, keys in (("missing", missing), ("foreign", foreign)) if keys)
        )
    loaded = {}
    for key, name in wanted.items():
        tensor = state.get(key, own[name])
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{key} has shape {tuple(tensor.shape)}, the model needs {tuple(own[name].shape)}"
                + (f": it was trained for {tensor.shape[0]} classes" if name.startswith(("head", "auxiliary")) else "")
            )
        loaded[name] = tensor
    model.load_state_dict(loaded)
    return model


def _state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    if not isinstance(source, Mapping):
        source = read_tensors(source)
    if isinstance(source.get("model"), Mapping):
        source = source["model"]
    strangers = [key for key, value in source.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strangers:
        raise KeyError(f"not a state dict: {strangers[0]!r} is no name of a tensor (and there is no 'model' entry)")
    return {key.removeprefix("module."): value for key, value in source.items()}


def _is_dead(key: str, state: Mapping[str, Tensor], wanted: Mapping[str, str]) -> bool:
    """Whether the published code stores `key` without using it.

    Beside the fixed ones these are the `.bn` and `.act` entries of a block whose convolution is used alone: our network
    wants its `.conv.weight` but none of its batch norm. And every part's heads, when the model has none.
    """
    if _ALWAYS_DEAD.fullmatch(key):
        return True
    if re.match(r"apf\d\.classifier\.", key) and not any(".classifier." in name for name in wanted):
        return True
    block = re.fullmatch(r"(.*)\.(bn|act)\.\w+", key)
    return (
        block is not None
        and f"{block[1]}.conv.weight" in wanted
        and f"{block[1]}.bn.weight" not in wanted
        and f"{block[1]}.conv.weight" in state
    )


def _named(what: str, keys: list[str], shown: int = 20) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return f"{what} {', '.join(keys[:shown])}{more}"
