"""Writes a small example of a user's own dataset: drawn images, masks, and the YAML file that describes them.

    python examples/make_own_data.py my-data
    papermill notebooks/10_train.ipynb out.ipynb -p dataset my-data/data.yaml -p preset demo

The masks hold the eleven class ids of RoadScenes, and the YAML file merges them into three classes.
"""

import sys
from pathlib import Path

from PIL import Image

from s2fpn_lib.data.roadscenes.dataset import RoadScenes

DESCRIPTION = """\
name: street
classes: [background, road, traffic]   # or `name: [r, g, b]`, which also sets the colors in figures
ignore: 11                             # value of unlabeled pixels in the masks
size: [{height}, {width}]                       # height and width at which images are trained and scored
splits:
  train: {{images: images/train, labels: masks/train, label_suffix: _mask}}
  val: {{images: images/val, labels: masks/val, label_suffix: _mask}}
label_map:                             # value in the masks: class
  {{0: background, 1: background, 2: background, 3: road, 4: road, 5: background, 6: background, 7: background,
   8: traffic, 9: traffic, 10: traffic}}
recording: "^[a-z]+"                   # the part of an image's name that names its recording
source: drawn by s2fpn_lib/data/roadscenes
"""


def make(folder: Path, size: tuple[int, int] = (96, 128), train: int = 12, val: int = 6) -> Path:
    """Writes the dataset with images of `size` (height, width) to `folder`; returns the path of data.yaml."""
    for split, count in {"train": train, "val": val}.items():
        scenes = RoadScenes(split, size=size, count=count)
        for index, name in enumerate(scenes.names):
            image, label = scenes.arrays(index)
            for kind, file, pixels in (("images", f"{name}.jpg", image), ("masks", f"{name}_mask.png", label)):
                path = folder / kind / split / file
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, quality=95)
    path = folder / "data.yaml"
    path.write_text(DESCRIPTION.format(height=size[0], width=size[1]))
    return path


if __name__ == "__main__":
    print(make(Path(sys.argv[1] if len(sys.argv) > 1 else "own-data")))
