"""The attention inspector: immutable state, pure pictures and numbers of it, a thin widget, and the exported page."""

from s2fpn_lib.inspector.numbers import readout
from s2fpn_lib.inspector.state import State, inspect
from s2fpn_lib.inspector.views import inspection_figure, render, render_level
