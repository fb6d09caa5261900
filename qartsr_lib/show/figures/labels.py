"""Labels beside markers, none over another."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

#: Where a label may stand, in points from its marker's middle: (right, up, alignment of the text).
PLACES = (
    *((5, 4, "left"), (-5, 4, "right"), (0, 7, "center"), (5, -11, "left"), (-5, -11, "right")),
    *((0, 16, "center"), (0, -14, "center"), (5, -20, "left"), (-5, -20, "right")),
)
MARKER = 4  # points from a marker's middle to its edge


def label_points(axis: Axes, labels: Sequence[tuple[float, float, str, str]], size: float = 7) -> None:
    """Write a text beside each point, at the first place that hides no point and no earlier text; else at the first.

    Args:
        axis: has all that it will show, in its final limits.
        labels: x, y, text, colour.
        size: of the text, in points.
    """
    figure = axis.figure
    figure.canvas.draw()
    reach = MARKER * figure.dpi / 72
    middles = [axis.transData.transform((x, y)) for x, y, _, _ in labels]
    taken = [Bbox.from_bounds(x - reach, y - reach, 2 * reach, 2 * reach) for x, y in middles]
    for x, y, text, colour in labels:
        shown = axis.annotate(text, (x, y), PLACES[0][:2], textcoords="offset points", fontsize=size, color=colour)
        boxes = {}
        for right, up, side in PLACES:
            shown.set_position((right, up))
            shown.set_horizontalalignment(side)
            boxes[right, up, side] = shown.get_window_extent()
        free = [place for place, box in boxes.items() if not any(box.overlaps(other) for other in taken)]
        right, up, side = (free or PLACES)[0]
        shown.set_position((right, up))
        shown.set_horizontalalignment(side)
        taken.append(boxes[right, up, side])
