"""What views share: controls over one picture, drawn anew when a control changes, and figures as HTML.

The picture is HTML, so that it can describe itself to those who do not see it. There is no Output widget and no
`interact`: both can hang a headless run, and this way a view can be drawn and tested without a browser.
"""

import base64
import html
import re

import matplotlib as mpl
from ipywidgets import HTML, BoundedIntText, Button, HBox, Layout, SelectMultiple, VBox, Widget

from roarlib.study.params import InputError
from roarlib.views.plots import LOOK
from roarlib.views.sheets import png

RUN = "run `roar run` with its YAML"  # what to do about missing results of a study
WIDTH, NARROW = "270px", "130px"  # of a control, of a button
FITS = "max-width: 100%; height: auto; background: white"  # white paper in JupyterLab's dark theme too


class View(VBox):
    """Controls, a message and a picture. `figure` is the Figure shown, None while there is only a message.

    A subclass has draw(), which returns the Figure for the controls as they are and sets `words`, its content in plain
    text, or raises a LookupError or InputError of one sentence; and caption(), HTML for above the picture.
    """

    busy = False  # True while controls set one another

    def __init__(self, missing: str = "", **controls: Widget):
        """controls: by attribute name, their description if they have no other. missing: a sentence in place of all."""
        self.figure, self.message, self.picture = None, HTML(), HTML()
        for name, control in controls.items():
            setattr(self, name, control)
            button = isinstance(control, Button)
            control.description, control.layout.width = control.description or name, NARROW if button else WIDTH
            if not isinstance(control, Button | BoundedIntText):  # these act on other controls
                control.observe(self.redraw, "value")
        row = HBox(list(controls.values()), layout=Layout(flex_flow="row wrap", align_items="flex-start"))
        lists = any(isinstance(control, SelectMultiple) for control in controls.values())
        hint = [HTML("<small>In lists, hold Ctrl or Shift to choose several.</small>")] if lists else []
        super().__init__([self.message] if missing else [row, *hint, self.message, self.picture])
        if missing:
            self.say(missing)
        else:
            self.redraw()

    def settle(self, changed: Widget | None) -> None:
        """Make the other controls fit the one that changed; None: make all fit each other."""

    def shown(self) -> str:
        """The figure as HTML: an <img> with its size, so that nothing jumps when it is decoded."""
        wide, high = (round(side) for side in self.figure.bbox.size)
        return (
            f'<img alt="{html.escape(self.words)}" width="{wide}" height="{high}" decoding="sync" style="{FITS}" '
            f'src="data:image/png;base64,{base64.b64encode(png(self.figure)).decode()}">'
        )

    def redraw(self, change=None) -> None:
        if self.busy:
            return
        self.busy = True
        self.settle(change and change["owner"])
        self.busy = False
        try:
            with mpl.rc_context(LOOK):
                self.figure = self.draw()
        except (LookupError, InputError) as problem:
            return self.say(str(problem.args[0]))
        self.message.layout.display, self.picture.layout.display = "none", None
        caption = f'<figcaption style="line-height: 1.6">{self.caption()}</figcaption>'
        self.picture.value = f'<figure style="margin: 4px 0">{caption}{self.shown()}</figure>'

    def say(self, sentence: str) -> None:
        """Show a sentence in place of the picture; what stands in `backticks` is set as code."""
        text = re.sub("`(.+?)`", r"<code>\1</code>", html.escape(sentence[:1].upper() + sentence[1:]))
        self.figure, self.message.value = None, f"<p>{text}</p>"
        self.message.layout.display, self.picture.layout.display = None, "none"


def several(titles: dict, tip: str) -> SelectMultiple:
    """A choice of several values, by their titles."""
    options = [(title, value) for value, title in titles.items()]
    return SelectMultiple(options=options, tooltip=tip, rows=min(len(options), 6) or 1)


def named(titles: dict, values) -> list[tuple[str, str]]:
    """(title, value) of those values that occur, in the order of the titles: options of a control."""
    there = set(values)
    return [(title, value) for value, title in titles.items() if value in there]
