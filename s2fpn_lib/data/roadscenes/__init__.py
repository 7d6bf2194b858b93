"""RoadScenes: a synthetic road-scene dataset with the eleven classes of CamVid."""

from s2fpn_lib.data.roadscenes.dataset import RoadScenes, render_scene

__all__ = ["RoadScenes", "render_scene"]
