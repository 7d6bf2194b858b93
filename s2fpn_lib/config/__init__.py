"""Configurations of a training run: `TrainConfig` and its named presets."""

from s2fpn_lib.config.presets import PRESETS
from s2fpn_lib.config.train_config import OPERATIONAL, PUBLISHED_OPTIONS, RENAMED_FIELDS, TrainConfig
