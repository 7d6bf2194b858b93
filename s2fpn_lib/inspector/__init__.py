"""The attention inspector: immutable state, pure pictures and numbers of it, a thin widget, and the exported page.

    inspection = inspect(model, image, protocol, label=label)     # state.py: the only forward pass
    state = State(y=120, x=200)
    render(state, inspection), render_level(state, inspection, 3)   # views.py
    readout(state, inspection)                                      # numbers.py

figure.py and export.py make the files that are saved. widget.py and controls.py need ipywidgets and a kernel; this
module does not import them.
"""

from s2fpn_lib.inspector.numbers import readout
from s2fpn_lib.inspector.state import Inspection, State, inspect
from s2fpn_lib.inspector.views import render, render_level

__all__ = ["Inspection", "State", "inspect", "readout", "render", "render_level"]
