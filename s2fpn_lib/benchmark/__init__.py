"""Timing of inference, training step, loader, and metric, in turns with the published implementation."""
