"""Named recipes: the fields of `TrainConfig` in which each one differs from the published CamVid recipe."""

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
DOUBLED = {"switches": {"double_resolution": True}, "init_changes": ("double_resolution",)}
LITE_CAMVID_DOUBLE = dict(
    LITE_CAMVID, **DOUBLED, encoder_weights="", lr=6e-4, encoder_lr=2e-4, epochs=25, scale_range=(0.5, 1.5)
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
# Some minutes on a data-center GPU: whole images, a larger encoder, and revision v2; first at the network's own
# resolution from ImageNet weights, then at twice that.
LITE_CAMVID_GPU_OWN = dict(
    LITE_CAMVID,
    model="s2fpn_lite2",
    revision="v2",
    crop=(360, 480),
    batch_size=32,
    lr=2e-3,
    encoder_lr=7e-4,
    epochs=120,
    scale_range=(0.5, 2.0),
    color_cast=0.1,
    lovasz_weight=0.5,
    compile=True,
    workers=8,
    eval_every=20,
    checkpoint_every=10,
    checkpoint_rule="last",
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
        LITE_CAMVID_TRAINVAL, lr=3e-4, encoder_lr=1e-4, epochs=3, crop=(360, 480), batch_size=4, scale_range=(0.6, 1.75)
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
    "lite-camvid-gpu-own": LITE_CAMVID_GPU_OWN,
    "lite-camvid-gpu": dict(
        LITE_CAMVID_GPU_OWN,
        **DOUBLED,
        encoder_weights="",
        batch_size=16,
        lr=1e-3,
        encoder_lr=3.5e-4,
        class_weights=0.0,
        lovasz_weight=1.0,
    ),
    "quick": QUICK,  # two minutes on two CPU cores
    "demo": dict(QUICK, epochs=3, eval_every=3, eval_images=20),  # half a minute, to see that everything works
}
