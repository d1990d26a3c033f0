"""What views share: controls over one picture, drawn anew when a control changes, and figures as HTML.

The picture is HTML, so that it has words for those who do not see it. There is no Output widget and no `interact`:
both can hang a headless run, and this way a view draws, and is tested, without a browser.
"""

import base64
import html
import re
from io import BytesIO

from ipywidgets import HTML, Button, Dropdown, HBox, Layout, SelectMultiple, VBox
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from roarlib.study.names import BASES, FIXED, split_name
from roarlib.study.params import InputError
from roarlib.views.svg import FITS

WIDTH = "270px"  # of a control
OWN = "own"  # stands for the bases of users' own estimators


class View(VBox):
    """Controls, a message and a picture. `figure` is the Figure shown, None while there is only a message."""

    busy = False  # True while controls set one another

    def __init__(self, controls: list, missing: str = ""):
        self.figure = None
        self.message, self.picture = HTML(), HTML()
        if missing:
            super().__init__([self.message])
            return self.say(missing)
        row = HBox(controls, layout=Layout(flex_flow="row wrap", align_items="flex-start"))
        super().__init__([row, self.message, self.picture])
        for control in controls:
            if not isinstance(control, Button):
                control.observe(self.redraw, "value")
        self.redraw()

    def draw(self) -> Figure:
        """The picture for the controls as they are; LookupError or InputError, one sentence, where there is none."""
        raise NotImplementedError

    def caption(self) -> str:
        """HTML above the picture: what is shown."""
        raise NotImplementedError

    def alt(self) -> str:
        """The picture in words, plain text."""
        raise NotImplementedError

    def shown(self) -> str:
        """The figure as HTML."""
        return image(self.figure, self.alt())

    def redraw(self, _change=None) -> None:
        if self.busy:
            return
        try:
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


def image(figure: Figure, alt: str) -> str:
    """A figure as an <img> with a PNG in it, lightly compressed: it goes to a browser next door, and time counts."""
    file = BytesIO()
    FigureCanvasAgg(figure).print_png(file, pil_kwargs={"compress_level": 1})
    code = base64.b64encode(file.getvalue()).decode()
    wide, high = (round(side) for side in figure.bbox.size)  # known before it is decoded: nothing jumps
    return (
        f'<img alt="{html.escape(alt)}" width="{wide}" height="{high}" decoding="sync" style="{FITS}" '
        f'src="data:image/png;base64,{code}">'
    )


def run(name: str) -> str:
    """What to do about missing results of a study."""
    return f"run `roar run params/{name}.yaml`"


def base_of(name: str) -> str:
    """grad, gb, ig, or OWN for estimators of users."""
    base, _ = split_name(name)
    return base if base in BASES else OWN


def is_control(name: str) -> bool:
    """Random, Sobel and the like, and their variants."""
    return split_name(name)[0] in FIXED


def named(titles: dict, values) -> list[tuple[str, str]]:
    """(title, value) of those values that occur, in the order of the titles."""
    there = set(values)
    return [(title, value) for value, title in titles.items() if value in there]


def choice(description: str, options, tooltip: str, value=None) -> Dropdown:
    """A labelled choice of one, the first unless value says which; options: values or (title, value)."""
    more = {} if value is None else {"value": value}
    return Dropdown(options=options, description=description, tooltip=tooltip, layout=Layout(width=WIDTH), **more)


def many(description: str, options, value, tooltip: str) -> SelectMultiple:
    """A labelled choice of several; options: values or (title, value)."""
    return SelectMultiple(
        options=options,
        value=value,
        description=description,
        tooltip=tooltip,
        rows=min(len(options), 6) or 1,
        layout=Layout(width=WIDTH),
    )
