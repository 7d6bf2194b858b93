"""The class legend of the inspector: every class with its colour, shown or hidden, or alone."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets

from s2fpn_lib.data import Protocol


class ClassLegend(widgets.Box):
    """Check boxes of the classes, `only` beside each, `all` and `none` at the end; calls `changed(hidden ids)`."""

    def __init__(self, protocol: Protocol, changed: Callable[[frozenset[int]], None]) -> None:
        self.every = frozenset(range(protocol.num_classes))
        self.boxes: list[widgets.Checkbox] = []
        self.only: list[widgets.Button] = []
        self.all = _small_button("all", "Show every class")
        self.none = _small_button("none", "Hide every class")
        self.all.on_click(lambda _: changed(frozenset()))
        self.none.on_click(lambda _: changed(self.every))
        classes = zip(protocol.classes, protocol.palette, strict=True)
        entries = [self._entry(class_id, *named, changed) for class_id, named in enumerate(classes)]
        layout = widgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="4px")
        super().__init__([*entries, self.all, self.none], layout=layout)

    @property
    def hidden(self) -> frozenset[int]:
        """Ids of the classes whose box is not ticked."""
        return frozenset(i for i, box in enumerate(self.boxes) if not box.value)

    def show(self, hidden: frozenset[int]) -> None:
        """Ticks the boxes of all others."""
        for class_id, box in enumerate(self.boxes):
            box.value = class_id not in hidden

    def _entry(
        self, class_id: int, name: str, color: tuple[int, int, int], changed: Callable[[frozenset[int]], None]
    ) -> widgets.Box:
        swatch = widgets.HTML(f'<span class="s2fpn-swatch" style="background: rgb{color}"></span>')
        box = widgets.Checkbox(True, description=name, indent=False, layout=widgets.Layout(width="auto", margin="2px"))
        only = _small_button("only", f"Show {name} alone")
        box.observe(lambda _: changed(self.hidden), "value")
        only.on_click(lambda _: changed(self.every - {class_id}))
        self.boxes.append(box)
        self.only.append(only)
        entry = widgets.HBox([swatch, box, only], layout=widgets.Layout(align_items="center"))
        entry.add_class("s2fpn-legend-entry")
        return entry


def _small_button(text: str, tooltip: str) -> widgets.Button:
    return widgets.Button(description=text, tooltip=tooltip, layout=widgets.Layout(width="auto"))
