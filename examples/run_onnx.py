"""Run an exported S²-FPN on a picture without torch: numpy, Pillow, and onnxruntime are enough.

    python examples/run_onnx.py model.onnx street.jpg classes.png

`s2fpn_lib.inference.export.export_onnx` writes the model; its metadata describe the input.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

SMALLEST = 65  # pixels per side that a file with variable size takes


def main(model, source, target):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    picture = ImageOps.exif_transpose(Image.open(source))  # upright
    if picture.mode.startswith("I"):  # 16-bit grayscale
        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    picture = picture.convert("RGB")
    step = metadata.get("size_multiple", 1)  # files of earlier versions require multiples of it
    picture = picture.resize([max(-(-SMALLEST // step), round(side / step)) * step for side in picture.size])
    x = (np.asarray(picture, np.float32) - metadata["mean"]) / metadata["std"]  # (H, W, 3), RGB
    x = x.transpose(2, 0, 1)[None].astype(np.float32)  # (H, W, 3) -> (1, 3, H, W)
    (logits,) = session.run(None, {"image": x})
    classes = Image.fromarray(logits[0].argmax(0).astype(np.uint8))  # (K, H, W) -> (H, W)
    classes.putpalette(np.random.default_rng(0).integers(40, 256, (256, 3), np.uint8).tobytes())  # one color per class
    classes.save(target)
    print(f"{target}: {classes.width}x{classes.height}, classes {np.unique(np.asarray(classes)).tolist()}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: python {sys.argv[0]} MODEL.onnx PICTURE CLASSES.png")
    main(*sys.argv[1:])
