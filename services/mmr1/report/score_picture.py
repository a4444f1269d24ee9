"""One score as a picture: the image with its true boxes and those of the response, and what it came to.

Matplotlib's Agg canvas, and nothing of pyplot's global state. It computes nothing: boxes are in pixels already.
"""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke
from PIL import Image

from mmr1.drawn_boxes import Box
from mmr1.report.picture import INK, MUTED
from mmr1.rewards_words import Tried

TRUE, FOUND, EMPTY = "#2fe39d", "#ff9a3d", "#2b3140"
_WIDTH, _HEAD, _FOOT = 7.2, 0.95, 0.5  # inches: of the figure, above the image, below it
_OUTLINE: list[AbstractPathEffect] = [withStroke(linewidth=3.5, foreground="black", alpha=0.7)]


def draw(tried: Tried, image: Image.Image | None) -> bytes:
    """PNG bytes, 1008 pixels wide. Without an image, boxes stand on an empty ground of its size."""
    width, height = _size(tried, image)
    high = min(9.0, max(1.6, _WIDTH * height / width))
    figure = Figure(figsize=(_WIDTH, high + _HEAD + _FOOT), dpi=140, facecolor="white")
    FigureCanvasAgg(figure)
    whole = high + _HEAD + _FOOT
    axes = figure.add_axes((0.02, _FOOT / whole, 0.96, high / whole))
    axes.set_facecolor(EMPTY)
    if image is not None:
        axes.imshow(image, extent=(0, width, height, 0), interpolation="lanczos")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
    for spine in axes.spines.values():
        spine.set_visible(False)
    for box in tried.truth:
        _box(axes, box, TRUE, "-", box.label, above=True)
    for box in tried.found:
        partner = tried.partner(box)
        fate = f"IoU {partner[1]:.2f}" if partner else "no match" if tried.truth else ""
        _box(axes, box, FOUND, "--" if partner else ":", " ".join(filter(None, [box.label, fate])), above=False)
    _words(figure, tried, whole)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": "MMR1"})
    return content.getvalue()


def _size(tried: Tried, image: Image.Image | None) -> tuple[float, float]:
    """Of the ground: the image's, else what was said to be, else as much as the boxes need."""
    if image is not None:
        return float(image.width), float(image.height)
    if tried.item.image_size is not None:
        return float(tried.item.image_size[0]), float(tried.item.image_size[1])
    boxes = [*tried.truth, *tried.found]
    return max(1.0, *(1.08 * box.x2 for box in boxes)), max(1.0, *(1.12 * box.y2 for box in boxes))


def _box(axes: Axes, box: Box, colour: str, style: str, label: str, above: bool) -> None:
    if box.is_point:
        axes.add_patch(Circle((box.x1, box.y1), axes.get_xlim()[1] / 90, fill=False, edgecolor=colour, linewidth=2.2))
    else:
        corner, extent = (box.x1, box.y1), (box.x2 - box.x1, box.y2 - box.y1)
        edge = Rectangle(corner, *extent, fill=False, edgecolor=colour, linestyle=style, linewidth=2.2)
        edge.set_path_effects(_OUTLINE)
        axes.add_patch(edge)
    if label:
        _label(axes, box, colour, label[:60], above)


def _label(axes: Axes, box: Box, colour: str, text: str, above: bool) -> None:
    """Above or below the box, or inside it where the image ends. A model's words are never read as mathematics."""
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    line = 20 * width / (_WIDTH * 72)  # as many pixels of the image as a line of 20 points is high
    inside = box.y1 < line if above else box.y2 > height - line
    right = box.x1 > 0.7 * width
    axes.annotate(
        text, (box.x2 if right else box.x1, box.y1 if above else box.y2),
        (-2 if right else 2, 4 if above != inside else -4),
        textcoords="offset points", ha="right" if right else "left", va="bottom" if above != inside else "top",
        color=colour, fontsize=11, fontweight="bold", path_effects=_OUTLINE, parse_math=False, annotation_clip=False,
    )  # fmt: skip


def _words(figure: Figure, tried: Tried, whole: float) -> None:
    result = tried.explained.result
    reward = "no reward" if result.reward is None else f"reward {result.reward:.4g}"
    components = "   ".join(f"{name} {value:.3g}" for name, value in list(result.components.items())[:6])
    top = 1 - 0.3 / whole
    figure.text(0.02, top, f"{tried.task.name}: {reward}", fontsize=15, fontweight="bold", color=INK, va="center")
    figure.text(0.98, top, result.outcome.value, fontsize=11, color=MUTED, va="center", ha="right")
    lines = [components, result.detail[:110]]
    for place, line in enumerate(filter(None, lines)):
        figure.text(
            0.02, 1 - (0.58 + 0.22 * place) / whole, line, fontsize=9, color=MUTED, va="center", parse_math=False
        )
    if tried.truth or tried.found:
        handles = [
            Line2D([], [], color=TRUE, linewidth=2.5, label="true"),
            Line2D([], [], color=FOUND, linewidth=2.5, linestyle="--", label="read out of the response"),
        ]
        figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0.01, 0),
            ncols=2,
            frameon=False,
            fontsize=9,
            labelcolor=MUTED,
        )


__all__ = ["draw"]
