"""The page: one HTML file with its figures inside, readable without a network."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from calibrant._calibration import Calibration
from calibrant._files import write_text
from calibrant._problem import Problem
from calibrant.diagnostics._start import check_rows
from calibrant.inference import Signature
from calibrant.inference._planner import PLAN_COLUMNS, plan_rows
from calibrant.losses import MarginalLikelihood, Streams
from calibrant.report._failures import failure_maps, failure_rows
from calibrant.report._figures import failures_figure, history_figure, posterior_figure, predictive_figure
from calibrant.report._predictive import predictive


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return base64.b64encode(buffer.getvalue()).decode()


def _rows(calibration: Calibration, about: Mapping[str, Mapping[str, str]]) -> list[dict[str, str]]:
    draws = calibration.sample(0, 10_000)
    prior = calibration.prior.sample(_key(), 10_000)
    rows = []
    for name, x in draws.items():
        for index in np.ndindex(x.shape[1:]):
            after, before = np.asarray(x)[:, *index], np.asarray(prior[name])[:, *index]
            q, p = np.quantile(after, [0.05, 0.5, 0.95]), np.quantile(before, [0.05, 0.95])
            rows.append(
                {
                    "name": name + "".join(f"[{i}]" for i in index),
                    "description": about.get(name, {}).get("description", ""),
                    "units": about.get(name, {}).get("units", ""),
                    "median": f"{q[1]:.3g}",
                    "interval": f"{q[0]:.3g} to {q[2]:.3g}",
                    "prior": f"{p[0]:.3g} to {p[1]:.3g}",
                    "narrowed": f"{1 - np.std(after) / np.std(before):.0%}" if np.std(before) else "",
                }
            )
    return rows


def _check_section(check: Mapping[str, Any]) -> dict[str, Any]:
    """The verdicts of a check, its table and its pictures."""

    def row(name: str, v: Mapping[str, Any]) -> dict[str, str]:
        w = v["width"]
        (low, high), (left, right) = w["factor_interval"], w["shift_interval"]
        return {
            "name": name,
            "word": v["word"],
            "width": f"{w['factor']:.2f} ({low:.2f} to {high:.2f})",
            "shift": f"{w['shift']:+.2f} ({left:+.2f} to {right:+.2f})",
            "half": f"{v['coverage']['0.5'][0]:.0%}",
            "most": f"{v['coverage']['0.9'][0]:.0%}",
            "contraction": "" if v["contraction"] is None else f"{v['contraction']:.0%}",
        }

    return {
        "verdict": check["verdict"],
        "sentences": check["sentences"][1:],
        "rows": [row(name, v) for name, v in check["calibration"]["parameters"].items()],
        "pictures": {_PICTURES[n]: base64.b64encode(x).decode() for n, x in check["pictures"].items()},
    }


#: What pictures of a check show.
_PICTURES = {
    "ranks": "Ranks of truths among draws of their refits, less the uniform: a right posterior stays in the grey.",
    "coverage": "How often intervals, and regions of all parameters together, hold the truth.",
    "predictive": "Summaries of data simulated at the posterior, and of the observed data (line).",
    "identifiability": "What the data constrain.",
    "sensitivity": "What moves the outputs, over the prior.",
    "weight": "Coverage by the weight of the KL divergence.",
}


def _key():
    import jax

    return jax.random.key(1)


def _numbers(evaluation: Mapping[str, float]) -> dict[str, str]:
    """Objective, loss and KL divergence, or the loss alone of posteriors that have no density."""
    error = f"(standard error {evaluation['standard_error']:.2g})"
    if not np.isfinite(evaluation["kl"]):
        return {"Loss, fresh draws": f"{evaluation['loss']:.5g} {error}"}
    return {
        "Objective, fresh draws": f"{evaluation['objective']:.5g} {error}",
        "Loss": f"{evaluation['loss']:.5g}",
        "KL from the prior": f"{evaluation['kl']:.3g} nats",
    }


def _diagnosed(found: Mapping[str, Any]) -> dict[str, str]:
    """What a method says of its result, a line each: of numbers by parameter the worst."""
    out = {}
    if "chains" in found:
        out["Chains"] = f"{found['chains']} of {found['draws']} draws, {found['divergences']} divergent transitions"
    for key, label, worst in (
        ("r_hat", "R-hat", max),
        ("ess_bulk", "Effective draws", min),
        ("ess_tail", "In tails", min),
    ):
        if key in found:
            known = {name: x for name, x in found[key].items() if x is not None}
            name = worst(known, key=known.__getitem__) if known else None
            out[label] = "undefined" if name is None else f"{known[name]:.4g} ({name}, the worst)"
    if "tolerance" in found:
        out["Tolerance"] = f"{found['tolerance']:.5g}, acceptance {found['acceptance']:.2g}"
        out["Particles"] = f"{found['distinct_particles']} distinct, worth {found['ess']:.0f} that are equal"
    if "hessian" in found:
        out["Hessian"] = found["hessian"]
    return out


def write_report(
    path: Path,
    problem: Problem,
    calibration: Calibration,
    *,
    title: str,
    config: str = "",
    about: Mapping[str, Mapping[str, str]] | None = None,
    truth: Mapping[str, float] | None = None,
    forecast: Problem | None = None,
    check: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html`.

    **Arguments:** `about`, name -> `{"units": ..., "description": ...}` beyond what the model says itself; `truth`,
    scalar name -> value, for synthetic data; `config`, the text of the configuration; `forecast`, a problem like the
    first that goes on to days that were not fitted; `check`, what `checks.Check.describe` says, and `pictures`, name ->
    PNG.
    """
    described = {
        name: {"units": info.units, "description": info.description}
        for name, info in problem.model.Params.describe().items()
    }
    described |= {name: dict(x) for name, x in (about or {}).items() if x.get("units") or x.get("description")}
    units = {name: x["units"] for name, x in described.items()}
    loss = problem.loss.loss if isinstance(problem.loss, MarginalLikelihood) else problem.loss
    unfitted = [name for name, weight in loss.weights.items() if weight == 0] if isinstance(loss, Streams) else []
    draws = ahead = predictive(problem if forecast is None else forecast, calibration.posterior)
    if forecast is not None:  # the same simulations, up to the last day that was fitted
        draws = {name: x[:, : problem.steps] for name, x in ahead.items() if name in problem.data}
    figures = [
        (
            "Does it fit?",
            "Data simulated at draws of the posterior, with observation noise where the loss is a likelihood.",
            _png(predictive_figure(draws, problem.data, problem.model.dates, unfitted=unfitted)),
        ),
        (
            "What was learnt?",
            "Posterior over prior; median and 90% interval above each panel.",
            _png(posterior_figure(calibration, units, dict(truth or {}))),
        ),
        (
            "Did it converge?",
            "The objective is evaluated on a fixed set of draws; the best state on it is the posterior shown here, and "
            "the number in the summary is from a fresh set."
            if calibration.method == "GVI"
            else "What the method saw on its way; the number in the summary is from fresh simulations.",
            _png(history_figure(calibration)),
        ),
    ]
    if forecast is not None:
        names = list(forecast.data)
        ahead = {name: x for name, x in ahead.items() if name in names}
        text = "The same draws, carried on beyond the last day that was fitted (line), against what then happened."
        figure = predictive_figure(ahead, forecast.data, forecast.model.dates, fitted=problem.steps, unfitted=unfitted)
        figures.insert(1, ("Does it forecast?", text, _png(figure)))
    if calibration.failures:
        text = (
            f"Of {calibration.n_values} parameter values that were simulated, {calibration.n_failed} gave something "
            "that is not finite. Each bar stands for a twelfth of all; the method's `failures` says what they count as."
        )
        figures.append(("What failed?", text, _png(failures_figure(calibration))))
    evaluation = calibration.evaluation
    summary = {
        "Result": f"{calibration.result.value}: {calibration.reason}",
        "Method": calibration.method,
        **_numbers(evaluation),
        "Updates": str(len(calibration.updates["loss"])),
        "Simulations": f"{calibration.n_simulations} ({calibration.n_failed} not finite)",
        **_diagnosed(calibration.diagnostics),
        "Seed": str(calibration.seed),
        "Time": f"{calibration.timings.get('total', float('nan')):.1f} s",
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("calibrant.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.jinja").render(
        title=title,
        model=type(problem.model).__name__,
        summary=summary,
        warning="" if calibration.result.successful else f"This calibration did not end well. {calibration.reason}",
        rows=_rows(calibration, described),
        signatures=[str(Signature(**s)) for s in calibration.signatures],
        checked=check_rows(calibration.gradient_check or {}),
        plan={} if calibration.plan is None else {"columns": PLAN_COLUMNS, "rows": plan_rows(calibration.plan)},
        figures=figures,
        failing=failure_rows(failure_maps(calibration)),
        check=None if check is None else _check_section(check),
        config=config,
        versions=_versions(),
    )
    write_text(path, page)
    return path


def _versions() -> dict[str, Any]:
    from calibrant._calibration import versions

    return versions()
