"""Figures of a calibration. Each function returns a matplotlib figure; nothing is shown."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from calibrant._calibration import Calibration
from calibrant._figures import BLUE, GREY, INK, RED, grid, legend
from calibrant.report._failures import failure_maps


def _grid(n: int, *, width: float = 3.1, height: float = 2.5, columns: int = 3) -> tuple[Figure, list[Any]]:
    return grid(n, width=width, height=height, columns=columns)


def posterior_figure(calibration: Calibration, units: dict[str, str], truth: dict[str, float] | None = None) -> Figure:
    """Histograms of the posterior over the prior, one panel a scalar parameter."""
    posterior = calibration.sample(0, 10_000)
    prior = calibration.prior.sample(_key(), 10_000)
    panels = [
        (
            f"{name}{''.join(f'[{i}]' for i in index)}",
            name,
            np.asarray(x)[:, *index],
            np.asarray(prior[name])[:, *index],
        )
        for name, x in posterior.items()
        for index in np.ndindex(x.shape[1:])
    ]
    figure, axes = _grid(len(panels))
    for axis, (label, name, after, before) in zip(axes, panels, strict=True):
        low, high = np.quantile(np.concatenate([after, before]), [0.005, 0.985])
        low, high = min(low, after.min()), max(high, np.quantile(after, 0.999))
        bins = np.linspace(low, high, 60)
        axis.hist(before, bins, density=True, color=GREY, alpha=0.45, label="prior")
        axis.hist(after, bins, density=True, color=BLUE, alpha=0.75, label="posterior")
        left, middle, right = np.quantile(after, [0.05, 0.5, 0.95])
        axis.axvline(middle, color=INK, lw=1)
        if truth and label in truth:
            axis.axvline(truth[label], color=RED, lw=1.5, ls="--", label="truth")
        unit = f" [{units[name]}]" if units.get(name) else ""
        axis.set_title(f"{label}{unit}\n{middle:.3g} ({left:.3g} to {right:.3g})", fontsize=8.5)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
    legend(figure, axes)
    return figure


def _key():
    import jax

    return jax.random.key(1)


def predictive_figure(
    draws: Any, data: Any, dates: Any = None, *, fitted: int | None = None, unfitted: Sequence[str] = ()
) -> Figure:
    """Bands of the posterior predictive with the data over them, one panel a stream.

    `dates`, of the time axis, if there are any; `fitted`, how many times were fitted, if not all; `unfitted`, streams
    that were not.
    """
    streams = draws if isinstance(draws, dict) else {"simulated": draws}
    observed = data if isinstance(data, dict) else dict.fromkeys(streams, data)
    figure, axes = _grid(len(streams), width=5.2 if len(streams) > 1 else 8.0, height=3.4, columns=2)
    for axis, (name, x) in zip(axes, streams.items(), strict=True):
        x = np.asarray(x, dtype=float)
        y = np.asarray(observed[name], dtype=float) if name in observed else None
        note = " (not fitted)" if name in unfitted else ""
        axis.set_title(name.replace("_", " ") + note, fontsize=10)
        if x.ndim == 1:
            axis.hist(x, 40, color=BLUE, alpha=0.6, label="posterior predictive")
            if y is not None:
                axis.axvline(float(y), color=INK, lw=1.5, label="data")
            axis.set_yticks([])
        else:
            x = x.reshape(len(x), x.shape[1], -1)[:, :, 0]
            time = np.arange(1, x.shape[1] + 1) if dates is None else np.asarray(dates[: x.shape[1]])
            for level, alpha in ((0.9, 0.22), (0.5, 0.38)):
                low, high = np.nanquantile(x, [(1 - level) / 2, (1 + level) / 2], axis=0)
                axis.fill_between(time, low, high, color=BLUE, alpha=alpha, lw=0, label=f"{level:.0%} of simulations")
            axis.plot(time, np.nanmedian(x, axis=0), color=BLUE, lw=1.4, label="median")
            if y is not None:
                series = y.reshape(len(y), -1)[:, 0]
                axis.plot(time, series, "o", ms=4 if len(series) < 40 else 2, color=INK, label="data")
            if fitted is not None and fitted < len(time):
                axis.axvline(time[fitted - 1], color=RED, lw=1)
            if dates is not None:
                locator = AutoDateLocator()
                axis.xaxis.set_major_locator(locator)
                axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
            else:
                axis.set_xlabel("time", fontsize=8)
    legend(figure, axes)
    return figure


def history_figure(calibration: Calibration) -> Figure:
    """Objective on the fixed evaluation set, KL divergence, norm and signal-to-noise of the gradient.

    Of methods without an objective on the way: the loss, and what they record.
    """
    if not any(np.isfinite(row["objective"]) for row in calibration.history) and calibration.method != "GVI":
        return _record_figure(calibration)
    figure, axes = _grid(4, width=4.2, height=2.5, columns=2)
    updates = np.array([row["update"] for row in calibration.history])
    objective = np.array([row["objective"] for row in calibration.history])
    error = np.array([row["standard_error"] for row in calibration.history])
    later = objective[len(objective) // 5 :]
    axes[0].errorbar(updates, objective, yerr=error, color=BLUE, marker="o", ms=3, lw=1.2)
    axes[0].set_title("objective, evaluation set (loss + w KL)", fontsize=9)
    finite = later[np.isfinite(later)]
    if len(finite) and np.nanmax(objective) > finite.max() + 5 * np.ptp(finite) + 1e-9:
        margin = 0.15 * max(np.ptp(finite), 2 * np.nanmax(error[len(error) // 5 :]), 1e-12)
        axes[0].set_ylim(finite.min() - margin, finite.max() + margin)
    axes[1].plot(updates, [row["kl"] for row in calibration.history], color=BLUE, lw=1.2)
    axes[1].set_title("KL(posterior || prior), nats", fontsize=9)
    each = np.arange(1, len(calibration.updates["loss"]) + 1)
    axes[2].semilogy(each, np.maximum(calibration.updates["gradient_norm"], 1e-30), color=GREY, lw=0.6)
    axes[2].set_title("gradient norm before clipping", fontsize=9)
    axes[3].plot(each, calibration.updates["signal_to_noise"], color=GREY, lw=0.4)
    axes[3].axhline(1, color=RED, lw=0.9, ls="--")
    axes[3].set_title("gradient signal to noise (1: noise alone)", fontsize=9)
    ratios = calibration.updates["signal_to_noise"]
    ratios = ratios[np.isfinite(ratios)]
    axes[3].set_ylim(0, max(2.0, float(np.quantile(ratios, 0.995))) if len(ratios) else 2.0)
    if len(each) and not len(ratios):
        why = "needs gradients: of two simulations or more an update, or ten updates"
        axes[3].text(0.5, 0.6, why, transform=axes[3].transAxes, ha="center", fontsize=8)
    for axis in axes[2:]:
        axis.set_xlabel("update", fontsize=8)
    return figure


#: Panels of what other methods than GVI record.
_RECORDED = {
    "tolerance": "tolerance",
    "ess": "effective particles",
    "acceptance": "share of moves accepted",
    "best_loss": "loss of the best start",
    "step_size": "mean step size",
    "gradient_norm": "gradient norm",
    "divergent": "divergent transitions so far",
}


def _record_figure(calibration: Calibration) -> Figure:
    names = [n for n in _RECORDED if np.any(np.isfinite(calibration.updates.get(n, np.zeros(0))))]
    figure, axes = _grid(1 + len(names), width=4.2, height=2.5, columns=2)
    panels = {"loss": "loss where it is, as the method sees it", **{n: _RECORDED[n] for n in names}}
    each = np.arange(1, len(calibration.updates["loss"]) + 1)
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        x = calibration.updates[name]
        axis.plot(each, np.cumsum(x) if name == "divergent" else x, color=BLUE, lw=1 if len(each) < 200 else 0.5)
        if name in ("gradient_norm", "step_size") and np.all(x[np.isfinite(x)] > 0):
            axis.set_yscale("log")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("update", fontsize=8)
    return figure


def failures_figure(calibration: Calibration) -> Figure:
    """The share of simulations that were not finite, along each parameter, one panel a scalar parameter."""
    maps = failure_maps(calibration, bins=12)
    figure, axes = _grid(len(maps))
    overall = calibration.n_failed / max(calibration.n_values, 1)
    for axis, m in zip(axes, maps, strict=True):
        axis.stairs(100 * m.share, m.edges, fill=True, color=RED, alpha=0.6)
        axis.axhline(100 * overall, color=INK, lw=1, ls="--", label=f"of all, {overall:.1%}")
        axis.set_ylim(0, max(2.0, 115 * float(np.max(m.share))))
        axis.set_title(m.name, fontsize=9)
        axis.set_ylabel("% not finite", fontsize=8)
    legend(figure, axes)
    return figure
