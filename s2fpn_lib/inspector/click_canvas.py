"""A picture in the notebook that answers with a pixel: mouse, touch and arrow keys; labelled for screen readers."""

from __future__ import annotations

import io
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from PIL import Image

HERE = Path(__file__).parent


class ClickCanvas(anywidget.AnyWidget):
    """Shows `picture`; a click or an arrow key sets `pixel`.

    Attributes:
        picture: JPEG bytes; drawn as wide as the place it is in.
        size: (H, W) that `pixel` counts in, which need not be the picture's.
        pixel: (y, x), the chosen one.
        label: what the picture is, for screen readers.
        description: what is at the chosen pixel; read out when it changes.
        interactive: False for a picture to look at: no focus, no answer, `label` is its text alternative.
    """

    _esm = HERE / "click_canvas.js"
    _css = HERE / "click_canvas.css"
    picture = traitlets.Bytes(b"").tag(sync=True)
    size = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=(1, 1)).tag(sync=True)
    pixel = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=(0, 0)).tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)
    description = traitlets.Unicode("").tag(sync=True)
    interactive = traitlets.Bool(True).tag(sync=True)

    def draw(self, pixels: np.ndarray) -> None:
        """Shows (h, w, 3) uint8 pixels."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=92, subsampling=0)  # a third of a PNG's time and bytes
        self.picture = buffer.getvalue()
