"""What every page has in common: colours by day and by night, numbers, pictures and figures."""

from __future__ import annotations

import base64
import io
import math
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
from torch import Tensor

from patchattack.files import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each role's colour by day and by night. Figures are drawn in the colours of the day, which then become CSS variables.
COLOURS = {
    "paper": ("#fdfdfc", "#15171a"),
    "panel": ("#f4f4f1", "#1e2125"),
    "rule": ("#dfe0dd", "#33373d"),
    "muted": ("#666b73", "#9aa1ab"),
    "ink": ("#1a1c1f", "#e9eaec"),
    "patch": ("#c2410c", "#fb8a4c"),
    "random": ("#2f6690", "#7db7e0"),
    "calm": ("#3f6f4e", "#8cc6a0"),
}
DAY = {role: day for role, (day, _) in COLOURS.items()}
_WIDEST = 640  # pixels; larger frames are shown reduced


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render one of this folder's templates as an HTML file that asks nothing of any server and runs no script.

    Raises:
        InputError: the file cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"png": _png, "number": number}
    write(path, environment.get_template(template).render(colours=COLOURS, **values))


def figure_style() -> AbstractContextManager[None]:
    """Under it figures are made and drawn."""
    from matplotlib import rc_context

    return rc_context(
        {
            "svg.fonttype": "none",  # text stays text, in the page's font
            "svg.hashsalt": "patchattack",  # the same page has the same bytes
            "text.parse_math": False,
            "savefig.transparent": True,
        }
    )


def number(value: float) -> str:
    """Three significant digits, at most three decimals."""
    if not math.isfinite(value):
        return "–"
    decimals = 2 - math.floor(math.log10(max(abs(value), 0.1)))
    return f"{value:,.{max(decimals, 0)}f}".replace("-", "−")


def _png(image: Tensor) -> str:
    """``[3 or 4, h, w]`` in [0, 1] as a data URI."""
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    if width > _WIDEST:
        pixels = cv2.resize(pixels, (_WIDEST, round(height * _WIDEST / width)), interpolation=cv2.INTER_AREA)
    order = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    _, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, order))
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()


def axes_of(height: float) -> tuple[Figure, Axes]:
    """A figure as wide as a phone, ``height`` inches high."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(DAY["rule"])
    axes.tick_params(colors=DAY["muted"], labelsize=8, width=0.6)
    axes.xaxis.label.set(color=DAY["muted"], size=8)
    return figure, axes


def svg(figure: Figure) -> str:
    """The figure as inline SVG in the page's colours."""
    from markupsafe import Markup

    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"]))
    drawn = re.sub(r"^.*?<svg ([^>]*?)width=\S+ height=\S+", r"<svg \1", text.getvalue(), flags=re.DOTALL)
    for role, day in DAY.items():
        drawn = drawn.replace(day, f"var(--{role})")
    return Markup(drawn)
