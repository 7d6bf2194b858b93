"""Whole training recipes by name: the published ones and ours, as changes to the defaults of `TrainConfig`."""

from typing import Any

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
