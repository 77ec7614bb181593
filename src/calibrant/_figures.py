"""What figures share: colours, a grid of panels, and a legend that hides no data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

BLUE, GREY, INK, RED = "#2563a8", "#9aa3ad", "#22272e", "#c2410c"


def grid(n: int, *, width: float, height: float, columns: int, least: float = 0.0) -> tuple[Figure, list[Any]]:
    """A figure of `n` panels in rows of `columns`, each of `width` by `height` inches; at least `least` inches wide."""
    columns = min(columns, n)
    rows = -(-n // columns)
    figure = Figure(figsize=(max(width * columns, least), height * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes[n:]:
        axis.set_visible(False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, list(axes[:n])


def legend(figure: Figure, axes: Sequence[Any]) -> None:
    """One legend for all `axes`, below them. Each label stands there once.

    A legend over the data hides some of it, and matplotlib takes seconds to find a free place among many points.
    """
    labelled = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if labelled:
        figure.legend(
            labelled.values(), labelled.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
        )
