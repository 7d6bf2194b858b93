"""The attention inspector: pure state, pure pictures and numbers of it, and a thin widget over them.

    inspection = inspect(model, image, protocol, label=label)     # state.py: the only forward pass
    state = State(y=120, x=200)
    render(state, inspection), render_level(state, inspection, 3)   # views.py
    readout(state, inspection)                                      # numbers.py

figure.py, html.py and save.py are what is taken home; widget.py and what it is made of (controls, legend, panel,
click_canvas, messages, sources) need a kernel with ipywidgets, and nothing here imports them.
"""

from s2fpn_lib.inspector.numbers import LevelReadout, Readout, readout
from s2fpn_lib.inspector.state import VIEWS, Inspection, State, inspect
from s2fpn_lib.inspector.views import PROFILE_HEIGHT, render, render_level

__all__ = [
    "PROFILE_HEIGHT",
    "VIEWS",
    "Inspection",
    "LevelReadout",
    "Readout",
    "State",
    "inspect",
    "readout",
    "render",
    "render_level",
]
