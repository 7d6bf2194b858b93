"""A picture in the notebook that answers with a pixel: mouse, touch and arrow keys; labelled for screen readers."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

HERE = Path(__file__).parent


class ClickCanvas(anywidget.AnyWidget):
    """Shows `picture`; a click or an arrow key sets `pixel`.

    Attributes:
        picture: PNG bytes; drawn as wide as the place it is in.
        size: (H, W) that `pixel` counts in, which need not be the picture's.
        pixel: (y, x), the chosen one.
        label: what the picture is, for screen readers.
        description: what is at the chosen pixel; read out when it changes.
    """

    _esm = HERE / "click_canvas.js"
    _css = HERE / "click_canvas.css"
    picture = traitlets.Bytes(b"").tag(sync=True)
    size = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=(1, 1)).tag(sync=True)
    pixel = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=(0, 0)).tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)
    description = traitlets.Unicode("").tag(sync=True)
