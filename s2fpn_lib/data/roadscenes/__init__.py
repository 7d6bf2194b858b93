"""RoadScenes: a road-scene dataset that is drawn from a seed, with CamVid's eleven classes."""

from s2fpn_lib.data.roadscenes.dataset import RoadScenes, render_scene

__all__ = ["RoadScenes", "render_scene"]
