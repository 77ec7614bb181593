"""Pictures of checks. Each function returns a matplotlib figure; nothing is shown."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from calibrant._figures import BLUE, GREY, INK, RED, grid, legend
from calibrant.checks._calibration import CalibrationCheck
from calibrant.checks._identifiability import Identifiability
from calibrant.checks._predictive import PredictiveCheck
from calibrant.checks._sensitivity import Sensitivity
from calibrant.checks._uniform import envelope
from calibrant.checks._weight import WeightSearch


def _axes(n: int, *, width: float = 3.3, height: float = 2.6, columns: int = 4) -> tuple[Figure, list[Any]]:
    return grid(n, width=width, height=height, columns=columns, least=5.0)


def _ecdf_difference(axis: Any, u: np.ndarray, *, size: float, color: str, label: str) -> None:
    """The empirical distribution function minus the uniform one, over the envelope."""
    e = envelope(len(u), 1 - size)
    points = np.concatenate([[0], e.points, [1]])
    low, high = (np.concatenate([[0], x - e.points, [0]]) for x in (e.low, e.high))
    axis.fill_between(points, low, high, color=GREY, alpha=0.3, lw=0)
    below = np.mean(u[:, None] <= points, axis=0) - points
    axis.plot(points, below, color=color, lw=1.4, label=label)
    axis.axhline(0, color=GREY, lw=0.8)


def ranks_figure(check: CalibrationCheck) -> Figure:
    """Ranks of every parameter, plain and folded: distribution function minus the uniform one, inside an envelope that
    a right posterior leaves with probability `size`; width factor and shift beside."""
    n = len(check.verdicts) + 1
    figure, axes = _axes(n, columns=3 if n in (5, 6) else 4)
    for axis, v, u in zip(axes, check.verdicts, check.ranks.T, strict=False):
        _ecdf_difference(axis, u, size=check.size, color=BLUE, label="ranks")
        _ecdf_difference(axis, np.abs(2 * u - 1), size=check.size, color=RED, label="folded ranks")
        axis.set_title(f"{v.name}: {v.word}", fontsize=9, color=INK if v.word == "calibrated" else RED)
        axis.set_xlabel("rank / draws", fontsize=8)
    legend(figure, axes)
    axis, names = axes[-1], [v.name for v in check.verdicts]
    y = np.arange(len(names))[::-1]
    for v, at in zip(check.verdicts, y, strict=True):
        low, high = v.width.factor_interval
        axis.plot([low, high], [at + 0.12] * 2, color=BLUE, lw=1.5)
        axis.plot(v.width.factor, at + 0.12, "o", color=BLUE, ms=4)
        low, high = v.width.shift_interval
        axis.plot([1 + low, 1 + high], [at - 0.12] * 2, color=RED, lw=1.5)
        axis.plot(1 + v.width.shift, at - 0.12, "s", color=RED, ms=4)
    axis.axvline(1, color=GREY, lw=0.8)
    axis.axvspan(check.detectable.narrow, min(check.detectable.wide, 3), color=GREY, alpha=0.2, lw=0)
    axis.set_yticks(y, names)
    axis.margins(y=0.25)
    axis.set_title("width factor (dots), 1 + shift (squares); 95%", fontsize=8)
    axis.set_xlabel("grey: widths too near 1 to be seen", fontsize=8)
    return figure


def coverage_figure(check: CalibrationCheck) -> Figure:
    """Coverage of central intervals of each parameter, and expected coverage of distances (TARP)."""
    figure, axes = _axes(2, width=4.6, height=3.8)
    level = np.linspace(0, 1, 101)
    for name, u in zip(check.names, check.ranks.T, strict=True):
        axes[0].plot(level, np.mean(np.abs(2 * u - 1)[:, None] <= level, axis=0), lw=1.3, label=name)
    axes[0].set_title("central intervals of each parameter", fontsize=9)
    for name, u in check.tarp.u.items():
        axes[1].plot(level, np.mean(u[:, None] <= level, axis=0), lw=1.3, label=name)
    axes[1].set_title("all parameters: distances to reference points (TARP)", fontsize=9)
    e = envelope(check.data_sets, 1 - check.size)
    for axis in axes:
        axis.fill_between(np.r_[0, e.points, 1], np.r_[0, e.low, 1], np.r_[0, e.high, 1], color=GREY, alpha=0.3, lw=0)
        axis.plot([0, 1], [0, 1], color=GREY, lw=0.8)
        axis.set_xlabel("nominal probability", fontsize=8)
        axis.set_ylabel("fraction of truths inside", fontsize=8)
        axis.legend(fontsize=7, frameon=False, loc="upper left")
    return figure


def predictive_check_figure(check: PredictiveCheck) -> Figure:
    """Histograms of summaries of simulated data, with the observed value; of the loss, of the difference of both."""
    figure, axes = _axes(len(check.names), height=2.2, columns=3)
    for axis, name, p, e in zip(axes, check.names, check.p, check.error, strict=True):
        x, y = check.simulated[name], check.observed[name]
        paired = y.ndim > 0
        shown, at = (x - y, 0.0) if paired else (x, float(y))
        low, high = np.quantile(shown, [0.002, 0.998])
        low, high = min(low, at), max(high, at)
        room = max(high - low, 1e-9) * 0.05
        axis.hist(shown, np.linspace(low - room, high + room, 40), color=BLUE, alpha=0.6)
        axis.axvline(at, color=RED if name in check.surprising else INK, lw=1.5)
        label = f"{name}, simulated - observed" if paired else name
        axis.set_title(f"{label}\np = {p:.2g} ± {e:.1g}", fontsize=8)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
    return figure


def identifiability_figure(it: Identifiability) -> Figure:
    """Contraction by parameter and by direction, and the derivative of the expected data in every parameter."""
    streams = it.local or {}
    figure, axes = _axes(2 + len(streams), width=4.4, height=3.2, columns=2)
    dim = len(it.names)
    y = np.arange(dim)[::-1]
    axes[0].barh(y, np.clip(it.contraction, 0, 1), color=BLUE, alpha=0.75)
    axes[0].set_yticks(y, it.names, fontsize=8)
    axes[0].set_title("contraction of each parameter", fontsize=9)
    axes[1].barh(
        y + 0.18, np.clip(it.directions.contraction, 0, 1), height=0.32, color=BLUE, alpha=0.75, label="posterior"
    )
    if it.predicted is not None:
        axes[1].barh(y - 0.18, it.predicted.contraction, height=0.32, color=GREY, label="information")
    axes[1].set_yticks(y, [it.directions.label(i) for i in range(dim)], fontsize=6 if dim > 2 else 8)
    axes[1].set_title("contraction of directions (of the posterior)", fontsize=9)
    for axis in axes[:2]:
        axis.set_xlim(0, 1)
        axis.set_ylim(-0.6, dim - 0.4)
    for axis, (name, slope) in zip(axes[2:], streams.items(), strict=True):
        rows = slope.reshape(-1, dim) if slope.ndim < 3 else np.nanmean(slope.reshape(len(slope), -1, dim), axis=1)
        _curves(axis, rows, it.names)
        axis.axhline(0, color=GREY, lw=0.8)
        axis.set_title(f"derivative of {name} at the median, per prior sd", fontsize=9)
    legend(figure, axes)
    return figure


def sensitivity_figure(it: Sensitivity) -> Figure:
    """First-order indices over the prior: of each stream, and of each of its numbers in turn."""
    streams = list(it.first)
    figure, axes = _axes(1 + len(streams), width=4.4, height=3.2, columns=2)
    left = np.zeros(len(streams))
    y = np.arange(len(streams))[::-1]
    for i, name in enumerate(it.names):
        share = np.array([it.first[s][i] for s in streams])
        axes[0].barh(y, share, left=left, label=name, color=f"C{i}")
        left += share
    noise = np.array([it.noise[s] for s in streams])
    axes[0].barh(y, noise, left=left, color=GREY, label="simulation noise")
    axes[0].set_yticks(y, streams, fontsize=8)
    axes[0].set_xlim(0, max(1.0, float(np.max(left + noise))))
    axes[0].set_title("share of the variance over the prior, parameter alone", fontsize=9)
    for axis, stream in zip(axes[1:], streams, strict=True):
        _curves(axis, it.by_point[stream], it.names)
        axis.set_ylim(-0.02, 1.02)
        axis.set_title(f"{stream}: first-order index", fontsize=9)
    legend(figure, axes)
    return figure


def _curves(axis: Any, rows: np.ndarray, names: tuple[str, ...]) -> None:
    if len(rows) == 1:
        axis.bar(np.arange(len(names)), rows[0], color=[f"C{i}" for i in range(len(names))])
        axis.set_xticks(np.arange(len(names)), names, fontsize=7)
        return
    for i, name in enumerate(names):
        axis.plot(np.arange(1, len(rows) + 1), rows[:, i], "o-", ms=2, lw=1.2, color=f"C{i}", label=name)
    axis.set_xlabel("data point", fontsize=8)


def weight_figure(search: WeightSearch) -> Figure:
    """Coverage against the weight: on average, and of each parameter."""
    figure, (axis,) = _axes(1, width=6.0, height=4.0)
    steps = sorted(search.steps, key=lambda s: s.weight)
    w = [s.weight for s in steps]
    for i, name in enumerate(search.names):
        axis.plot(w, [s.by_parameter[i] for s in steps], "o-", ms=3, lw=0.9, alpha=0.7, label=name)
    axis.errorbar(
        w, [s.coverage for s in steps], [s.error for s in steps], color=INK, marker="o", lw=1.8, label="average"
    )
    axis.axhline(search.nominal, color=GREY, lw=1, ls="--")
    axis.axvline(search.weight, color=RED, lw=1, ls="--")
    axis.set_xscale("log")
    axis.set_xlabel("weight w of the KL divergence", fontsize=9)
    axis.set_ylabel(f"truths inside intervals of {search.nominal:.0%}", fontsize=9)
    legend(figure, [axis])
    return figure
