"""Bias and noise of every gradient estimator on SIR with 50 to 100,000 agents.

The derivative of the attack rate after 20 days in the logs of beta, gamma and the number of first cases, in three
structures: fully mixed, households of 4 and groups of 20, and the latter with every agent among its own contacts, which
changes no simulation and misleads whoever differentiates it. Noise is e = sd * sqrt(simulations) / |gradient|: how many
simulations, in units of e^2, a gradient of signal-to-noise 1 takes. Cost is the time of one of these simulations with
its share of the gradient, in units of one without a derivative. Bias is against the mean over `ControlledScore` and
differences of many more seeds, which agree within their errors. (The number of first cases is no whole
number: there its derivative is one-sided.)

    python studies/estimators.py [--tiny | --quick] [--agents 50 200 1000 5000 20000 100000]

Results are kept cell by cell in OUT.json; what is there already is not run again.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from cells import Cells
from matplotlib.figure import Figure

import calibrant as cal
from calibrant._files import atomic_path
from calibrant.estimators.rebar import AbstractRelaxed
from calibrant.inference._losses import Differentiation
from calibrant.models._epidemic import probability_within
from calibrant.models.sir import SIRState
from calibrant.networks import random_groups

STEPS = 20
#: Values an update from which `Corrected` learns, and updates.
VALUES, UPDATES = 4, 100
NAMES = ("beta", "gamma", "initial")
E = cal.estimators


class SelfContactSIR(cal.models.SIR):
    """SIR in which an agent's own infectiousness stands in the mean of its groups."""

    def step(self, params: Any, state: SIRState, inputs_t: Any, rng: cal.Randomness) -> SIRState:
        met = sum(
            share * layer.spread(layer.sum(state.infected) / jnp.maximum(jnp.asarray(layer.sizes) - 1, 1))
            for layer, share in zip(self.layers, self.shares, strict=True)
        )
        p = probability_within(params.beta * met, self.dt)
        caught = rng.bernoulli(p, site="infection", where=state.susceptible)
        recovers = rng.bernoulli(probability_within(params.gamma, self.dt), site="recovery", where=state.infected)
        return SIRState(state.susceptible - caught, state.infected + caught - recovers)


def structures(n: int) -> dict[str, cal.models.SIR]:
    groups = (random_groups(n, 4, contiguous=True), random_groups(n, min(20, n), seed=0))
    return {
        "mixed": cal.models.SIR((random_groups(n, n, contiguous=True),)),
        "households": cal.models.SIR(groups),
        "households, self-contact": SelfContactSIR(groups, jnp.full(2, 0.5), 1.0),
    }


def estimators(dim: int) -> dict[str, tuple[Any, int, int]]:
    """Estimator, replicates that it works on together, simulations a replicate takes."""
    gumbel = cal.GumbelSoftmax
    return {
        "straight-through": (E.Pathwise(), 1, 1),
        "corrected": (cal.Corrected(step=0.1), VALUES, 2),  # 2 x 2 differences for 4 values
        "Gumbel-softmax 0.1": (E.Pathwise(gumbel(0.1)), 1, 1),
        "Gumbel-softmax 0.5": (E.Pathwise(gumbel(0.5)), 1, 1),
        "Gumbel-softmax 1": (E.Pathwise(gumbel(1.0)), 1, 1),
        "soft Gumbel-softmax 0.5": (E.Pathwise(gumbel(0.5, straight_through=False)), 1, 1),
        "finite differences": (E.FiniteDifferences(0.1), 1, 2 * dim + 1),
        "score function": (E.ScoreFunction(), 32, 1),
        "score, reward to go": (E.ScoreFunction(reward_to_go=True), 32, 1),
        "score, state baseline": (E.ScoreFunction(E.StateRegression()), 32, 1),
        "MuProp": (E.MuProp(), 32, 2),
        "controlled score, 32": (E.ControlledScore(), 32, 1),
        "controlled score, 128": (E.ControlledScore(), 128, 1),
        "branching, 16": (E.Branching(16), 1, 18),
        "branching, 16, linear": (E.Branching(16, linear=True), 1, 20),
        "REBAR, trained": (E.REBAR(), 32, 2),
        "RELAX, trained": (E.RELAX(), 32, 2),
    }


class LogModel(cal.AbstractModel):
    """A model in logs of its parameters, so that derivatives are relative and steps of differences too."""

    inner: cal.models.SIR
    Params = cal.models.SIR.Params

    def _params(self, params: Any) -> Any:
        return params.replace({name: jnp.exp(getattr(params, name)) for name in NAMES})

    def init(self, params: Any, rng: cal.Randomness) -> Any:
        return self.inner.init(self._params(params), rng)

    def step(self, params: Any, state: Any, inputs_t: Any, rng: cal.Randomness) -> Any:
        return self.inner.step(self._params(params), state, inputs_t, rng)

    def observe(self, params: Any, state: Any, inputs_t: Any, rng: cal.Randomness) -> Any:
        return self.inner.observe(self._params(params), state, inputs_t, rng)


class AttackRate(cal.losses.AbstractPerSimulationLoss):
    """The share ever infected by the end: a sum over times of which all but the last are zero."""

    agents: int

    def one(self, simulation: Any, data: Any, params: Any) -> Any:
        return (simulation["infected"][-1] + simulation["recovered"][-1]) / self.agents

    def terms(self, simulation: Any, data: Any, params: Any) -> Any:
        ever = (simulation["infected"] + simulation["recovered"]) / self.agents
        return jnp.zeros_like(ever).at[-1].set(ever[-1])


def trained(problem: cal.Problem, estimator: AbstractRelaxed, updates: int = 100) -> Any:
    """Its control variate after so many updates, of 4 values and 4 replicates each, as a calibration trains it."""
    prepared: Any = estimator.prepare(problem, jax.random.key(0))
    z = jnp.stack([jnp.full(4, getattr(problem.params, name)) for name in NAMES], axis=1)

    def update(carry: Any, words: Any) -> Any:
        estimator, optimiser = carry

        def gradients_by(estimator: Any) -> Any:
            def total(z: Any) -> Any:
                values = {name: z[:, i] for i, name in enumerate(NAMES)}
                out = cal.expect(problem, values, seeds=words, estimator=estimator)
                return jnp.sum(out.losses), (out.losses, out.finite)

            g, (losses, finite) = jax.grad(total, has_aux=True)(z)
            return losses, finite, g

        return estimator.trained(optimiser, gradients_by)[1:], None

    start, fixed = eqx.partition((prepared, prepared.init_training()), eqx.is_array)

    def body(carry: Any, words: Any) -> Any:
        (estimator, optimiser), _ = update(eqx.combine(carry, fixed), words)
        return eqx.filter((estimator, optimiser), eqx.is_array), None

    words = jnp.stack([cal.seeds(7, (4, 4), stream=i) for i in range(updates)])
    return eqx.combine(jax.jit(lambda c, w: jax.lax.scan(body, c, w)[0])(start, words), fixed)[0]


def corrected(problem: cal.Problem, estimator: cal.Corrected, groups: int, seed: int, at_once: int) -> Any:
    """One gradient a group, the mean over the values of the last update of a chain of its own, and the seconds of one.

    All updates are at the same parameters, as where a calibration has settled."""
    prior = cal.Prior({name: dist.Normal(getattr(problem.params, name), 1.0) for name in NAMES})
    plain = Differentiation(E.Pathwise(), cal.ReverseMode(), cal.FullHorizon(), at_once)

    @jax.jit
    def run(words: Any) -> Any:
        def update(memory: Any, at: Any) -> Any:
            i, words = at
            (_, _, g), memory = estimator.gradients(memory, plain, problem, prior, jnp.zeros((VALUES, 3)), words, i)
            return memory, jnp.mean(g, axis=0)

        def chain(words: Any) -> Any:
            return jax.lax.scan(update, estimator.init_training(3), (jnp.arange(UPDATES), words))[1][-1]

        return jax.lax.map(chain, words)

    words = cal.seeds(seed, (groups * UPDATES, VALUES)).reshape(groups, UPDATES, VALUES, 1, 2)
    program = run.lower(words).compile()
    start = time.perf_counter()
    g = jax.block_until_ready(program(words))
    return np.asarray(g), (time.perf_counter() - start) / UPDATES


def gradients(problem: cal.Problem, estimator: Any, groups: int, replicates: int, seed: int, at_once: int) -> Any:
    """One gradient a group of replicates, shape (groups, 3), and seconds."""
    if isinstance(estimator, cal.Corrected):
        return corrected(problem, estimator, groups, seed, at_once)
    if isinstance(estimator, AbstractRelaxed):
        estimator = trained(problem, estimator)
    values = {name: jnp.full(groups, getattr(problem.params, name)) for name in NAMES}

    def total(values: Any) -> Any:
        words = cal.seeds(seed, (groups, replicates))
        out = cal.expect(problem, values, seeds=words, estimator=estimator, simulations_at_once=at_once)
        return jnp.sum(out.losses)

    run = jax.jit(jax.grad(total)).lower(values).compile()
    start = time.perf_counter()
    g = jax.block_until_ready(run(values))
    return np.stack([np.asarray(g[name]) for name in NAMES], axis=1), time.perf_counter() - start


def forward(problem: cal.Problem, simulations: int, at_once: int) -> float:
    """Seconds of a simulation without a derivative."""
    values = {name: jnp.full(simulations, getattr(problem.params, name)) for name in NAMES}
    words = cal.seeds(3, (simulations, 1))

    def losses(values: Any) -> Any:
        return cal.expect(problem, values, seeds=words, simulations_at_once=at_once).losses

    run = jax.jit(losses).lower(values).compile()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(run(values))
        times.append(time.perf_counter() - start)
    return min(times) / simulations


def reference_of(structure: str) -> str:
    """Where the reference of a structure is measured: self-contact changes no simulation."""
    return "households" if structure == "households, self-contact" else structure


def cell(n: int, structure: str, name: str, simulations: int) -> dict[str, Any]:
    inner = structures(n)[structure]
    logs = {"beta": np.log(0.5), "gamma": np.log(0.2), "initial": np.log(max(2, n // 50) + 0.5)}
    params = inner.default_params.replace(logs)
    data = {"infected": np.zeros(STEPS), "recovered": np.zeros(STEPS)}
    problem = cal.Problem(LogModel(inner), data, AttackRate(n), params=params, steps=STEPS)
    at_once = max(1, (4_000_000 if jax.default_backend() == "cpu" else 32_000_000) // (n * STEPS))
    if name == "forward":
        return {"seconds_a_simulation": forward(problem, max(2, min(100, simulations * 1000 // n)), at_once)}
    if name == "reference":
        parts = []
        for estimator, replicates in ((E.ControlledScore(), 128), (E.FiniteDifferences(0.05), 1)):
            groups = max(8, 4 * simulations // (replicates if replicates > 1 else 7))
            g, _ = gradients(problem, estimator, groups, replicates, 1, at_once)
            parts.append((g.mean(0), g.std(0, ddof=1) / np.sqrt(groups)))
        return {
            "mean": parts[0][0].tolist(),
            "error": parts[0][1].tolist(),
            "differences": parts[1][0].tolist(),
            "differences_error": parts[1][1].tolist(),
        }
    estimator, replicates, runs = estimators(len(NAMES))[name]
    groups = max(12, simulations // (replicates * runs))
    if isinstance(estimator, cal.Corrected):
        groups = max(12, groups // 10)  # each is at the end of a hundred updates
    g, seconds = gradients(problem, estimator, groups, replicates, 2, at_once)
    return {
        "mean": g.mean(0).tolist(),
        "error": (g.std(0, ddof=1) / np.sqrt(groups)).tolist(),
        "sd_sqrt_cost": (g.std(0, ddof=1) * np.sqrt(replicates * runs)).tolist(),
        "seconds_a_simulation": seconds / (groups * replicates * runs),
    }


def table(cells: dict[str, Any], agents: list[int], parameter: int) -> str:
    lines = []
    for structure in ("mixed", "households", "households, self-contact"):
        at = reference_of(structure)
        if not any(f"{at}|{n}|reference" in cells for n in agents):
            continue
        lines += [f"\n{structure}: bias, e, cost", "| estimator | " + " | ".join(f"N = {n:,}" for n in agents) + " |"]
        lines.append("| --- " * (len(agents) + 1) + "|")
        for name in estimators(3):
            row = []
            for n in agents:
                got, truth = cells.get(f"{structure}|{n}|{name}"), cells.get(f"{at}|{n}|reference")
                run = cells.get(f"{structure}|{n}|forward")
                if got is None or truth is None or truth["mean"][parameter] == 0:
                    row.append("")
                    continue
                size, error = truth["mean"][parameter], np.hypot(got["error"][parameter], truth["error"][parameter])
                bias = (got["mean"][parameter] - size) / abs(size)
                shown = f"{bias:+.0%}" if abs(bias) * abs(size) > 2 * error else "0"
                cost = "" if run is None else f", {got['seconds_a_simulation'] / run['seconds_a_simulation']:.2g}"
                row.append(f"{shown}, {got['sd_sqrt_cost'][parameter] / abs(size):.2g}{cost}")
            if any(row):
                lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def picture(cells: dict[str, Any], agents: list[int], path: Path) -> None:
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey="row")
    styles = {name: (f"C{i % 10}", "-" if i < 10 else "--") for i, name in enumerate(estimators(3))}
    for column, structure in enumerate(("mixed", "households", "households, self-contact")):
        for name, (colour, line) in styles.items():
            of = reference_of(structure)
            x = [n for n in agents if {f"{structure}|{n}|{name}", f"{of}|{n}|reference"} <= set(cells)]
            got = [cells[f"{structure}|{n}|{name}"] for n in x]
            at = [cells[f"{of}|{n}|reference"]["mean"][0] for n in x]
            e = [c["sd_sqrt_cost"][0] / abs(t) for c, t in zip(got, at, strict=True)]
            bias = [(c["mean"][0] - t) / abs(t) for c, t in zip(got, at, strict=True)]
            axes[0, column].loglog(x, e, marker="o", ms=3, color=colour, ls=line, lw=1, label=name)
            axes[1, column].semilogx(x, bias, marker="o", ms=3, color=colour, ls=line, lw=1)
        axes[0, column].set_title(structure, fontsize=10)
        axes[1, column].set(xlabel="agents", yscale="symlog")
        axes[1, column].axhline(0, color="0.6", lw=0.6)
        for axis in axes[:, column]:
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("noise e, derivative in log beta")
    axes[1, 0].set_ylabel("relative bias")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=150, format="png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="50 agents, few simulations")
    size.add_argument("--quick", action="store_true", help="50 and 1,000 agents")
    parser.add_argument("--agents", type=int, nargs="+")
    parser.add_argument("--simulations", type=int, default=None, help="a cell")
    parser.add_argument("--structures", nargs="+", choices=list(structures(40)), default=list(structures(40)))
    parser.add_argument("--only", nargs="+", choices=list(estimators(3)), default=list(estimators(3)))
    parser.add_argument("--out", type=Path, default=Path("studies/out/estimators"))
    arguments = parser.parse_args(argv)
    everything = [50, 200, 1000, 5000, 20_000, 100_000]
    agents = arguments.agents or ([50] if arguments.tiny else [50, 1000] if arguments.quick else everything)
    simulations = arguments.simulations or (400 if arguments.tiny else 3000)
    on_cpu = jax.default_backend() == "cpu"
    settings = {"simulations": simulations} | ({} if on_cpu else {"backend": jax.default_backend()})
    cells = Cells(arguments.out.with_suffix(".json"), settings)
    todo: list[tuple[str, Any]] = []
    for n in agents:
        few = simulations
        if on_cpu:  # simulations of more agents have less noise each, and take longer
            few = max(300, int(simulations * min(1.0, 1000 / n)))
        for structure in arguments.structures:
            at = reference_of(structure)
            for where, name in ((at, "reference"), *((structure, name) for name in ("forward", *arguments.only))):
                todo.append((f"{where}|{n}|{name}", functools.partial(cell, n, where, name, few)))
    cells.run(list(dict(todo).items()))  # a reference serves two structures
    picture(cells.results, agents, arguments.out.with_suffix(".png"))
    for parameter, name in enumerate(NAMES):
        print(f"\nderivative in log {name}{table(cells.results, agents, parameter)}")


if __name__ == "__main__":
    main()
