"""The attention inspector: immutable state, pure pictures and numbers of it, a thin widget, and the exported page.

    state, inspection = State(y=120, x=200), inspect(model, picture, protocol)     # state.py: the only forward pass
    render(state, inspection), render_level(state, inspection, 3)     # views.py, which also has the still figure
    readout(state, inspection)     # numbers.py

export.py writes files. widget.py and controls.py need ipywidgets and a kernel; this module does not import them.
"""

from s2fpn_lib.inspector.numbers import readout
from s2fpn_lib.inspector.state import State, inspect
from s2fpn_lib.inspector.views import inspection_figure, render, render_level

__all__ = ["State", "inspect", "inspection_figure", "readout", "render", "render_level"]
