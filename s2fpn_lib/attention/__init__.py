"""What the strip attention of each level computes: recorder, statistics over images, and figures."""

from s2fpn_lib.attention.recorder import AttentionRecorder, Capture, GFUCapture, LevelCapture
