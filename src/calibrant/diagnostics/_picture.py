"""The picture of the health of gradients."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from calibrant._figures import BLUE, GREY, RED
from calibrant.diagnostics._advice import best
from calibrant.diagnostics._gradients import GradientHealth


def gradients_figure(health: GradientHealth) -> Figure:
    """Ratios to differences by coordinate; cost against direction of every candidate; growth of derivatives."""
    figure = Figure(figsize=(12, max(3.4, 1.6 + 0.24 * len(health.names))), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[1.2, 1, 0.8])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    _ratios(axes[0], health)
    _candidates(axes[1], health)
    axes[2].semilogy(
        np.arange(1, len(health.growth) + 1), np.where(health.growth > 0, health.growth, np.nan), color=BLUE
    )
    axes[2].set_xlabel("step", fontsize=8)
    axes[2].set_title("size of the outputs' derivative, by step", fontsize=9)
    return figure


def _ratios(axis, health: GradientHealth) -> None:
    y = np.arange(len(health.names))[::-1]
    shown = [(health.configured, BLUE, 0.12)]
    if best(health) not in (health.configured, health.reference):
        shown.append((best(health), RED, -0.12))
    for m, colour, shift in shown:
        ratio, error = health.ratios(m)
        seen = health.identified
        axis.errorbar(
            ratio[seen],
            y[seen] + shift,
            xerr=2 * error[seen],
            fmt="o",
            ms=4,
            color=colour,
            lw=1,
            label=m.candidate.name,
        )
    for at, style in ((1, "--"), (0, ":")):
        axis.axvline(at, color=GREY, lw=0.9, ls=style)
    axis.set_xscale("symlog", linthresh=1)
    _plain(axis)
    axis.set_yticks(y, [n if s else f"{n} (not seen)" for n, s in zip(health.names, health.identified, strict=True)])
    axis.set_title("gradient over central differences, 2 standard errors", fontsize=9)
    axis.margins(y=0.15)
    axis.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.1))


def _plain(axis) -> None:
    """Numbers as they are on a logarithmic axis: 10 in place of 10^1."""
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _candidates(axis, health: GradientHealth) -> None:
    going = [m for m in health.measurements if health.progress(m) > 0]
    furthest = max((health.progress(m) for m in going), default=1.0)
    for m in going:
        colour = BLUE if m is health.configured else RED if m is best(health) else GREY
        place = (furthest / health.progress(m), health.alignment(m))
        axis.plot(*place, "o", color=colour)
        axis.annotate(m.candidate.name, place, xytext=(0, 6), textcoords="offset points", fontsize=7, ha="center")
    axis.set_xscale("log")
    axis.margins(0.3, 0.15)
    low, high = axis.get_xlim()
    axis.set_xlim(low, max(high, 4.0))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _plain(axis)
    axis.axhline(1, color=GREY, lw=0.9, ls="--")
    axis.set_xlabel("work for the same progress, of the least", fontsize=8)
    axis.set_ylabel("cosine with differences", fontsize=8)
    axis.set_title("candidates: up and left is better", fontsize=9)
