"""Other methods than GVI: they find posteriors that are known in closed form or by quadrature, and say what went wrong.

All share one model, one loss and one configuration each, with what differs in arrays, so that each compiles once.
"""

import csv
import dataclasses
import functools
import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from commands import run
from jaxtyping import Array
from killing import Killed, Killer
from scipy.stats import norm, truncnorm

import calibrant as cal
from calibrant._files import load_arrays
from calibrant.cli._run import read_run
from calibrant.losses import AbstractPerSimulationLoss

SCALE, DATUM = 0.5, 1.0
#: Normal prior, normal likelihood: precision 1 + 1 / SCALE^2.
MEAN, SD = DATUM / SCALE**2 / (1 + 1 / SCALE**2), (1 + 1 / SCALE**2) ** -0.5


class Draw(cal.AbstractModel):
    """`theta`, with noise; not finite beyond a limit."""

    noise: Array
    limit: Array

    Params = toys.DriftParams

    def init(self, params, rng):
        return jnp.zeros((), params.theta.dtype)

    def step(self, params, state, inputs_t, rng):
        return params.theta + self.noise * rng.normal("noise", dtype=state.dtype)

    def observe(self, params, state, inputs_t, rng):
        return jnp.where(params.theta > self.limit, jnp.nan, state)


class Squares(AbstractPerSimulationLoss):
    """`strength / 2 ((x - y) / SCALE)^2`, whose gradient is `factor` times its own plus `shift`."""

    strength: Array
    factor: Array
    shift: Array

    def one(self, simulation, data, params):
        x, y = simulation[0], data[0]
        value = 0.5 * self.strength * ((x - y) / SCALE) ** 2
        wrong = self.factor * value + self.shift * x
        return jax.lax.stop_gradient(value - wrong) + wrong


def problem(*, noise=0.0, limit=math.inf, strength=1.0, factor=1.0, shift=0.0):
    numbers = (jnp.asarray(x, float) for x in (strength, factor, shift))
    model = Draw(jnp.asarray(noise, float), jnp.asarray(limit, float))
    return cal.Problem(model, jnp.array([DATUM]), Squares(*numbers), steps=1)


CHAINS = {
    "NUTS": cal.NUTS(warmup=300, draws=1500, replicates=1, evaluate_every=300, evaluation_simulations=50),
    "MALA": cal.MALA(warmup=300, draws=3000, replicates=1, evaluate_every=300, evaluation_simulations=50),
}
POINT = cal.Point(max_updates=200, starts=4, end_simulations=10, evaluate_every=100)
ABC = cal.SMCABC(particles=1000, max_updates=12, evaluation_simulations=50)
METHODS = {**CHAINS, "Point": POINT, "SMCABC": ABC}


def calibrated(made, method, **kwargs):
    return cal.calibrate(made, method=method, progress=False, **kwargs)


@functools.cache
def found(name):
    """By one of `METHODS`, of the problem as it is."""
    return calibrated(problem(), METHODS[name])


def check_moments(result, mean, sd, effective=None):
    """Within four standard errors; those of the standard deviation of something near a normal."""
    chains = result.posterior.chains(10**9)
    draws = np.asarray(result.sample(0, 4000)["theta"] if chains is None else chains["theta"])
    effective = effective or min(result.diagnostics["ess_bulk"]["theta"], result.diagnostics["ess_tail"]["theta"])
    assert abs(draws.mean() - mean) < 4 * sd / math.sqrt(effective)
    assert abs(draws.std() / sd - 1) < 4 / math.sqrt(2 * effective)


@pytest.mark.parametrize("name", CHAINS)
def test_chains_find_a_conjugate_posterior_with_right_and_with_wrong_gradients(name):
    """Half the gradient and a constant: the values of the density accept moves, so the posterior is the same."""
    method = CHAINS[name]
    right = found(name)
    assert right.result is cal.Result.MAX_UPDATES
    check_moments(right, MEAN, SD)
    assert right.diagnostics["converged"]
    assert right.signatures == []
    assert right.n_failed == 0
    wrong = calibrated(problem(factor=0.5, shift=0.7), method)
    check_moments(wrong, MEAN, SD)
    assert not np.array_equal(right.posterior.flow.points, wrong.posterior.flow.points)
    again = calibrated(problem(), method)
    np.testing.assert_array_equal(right.posterior.flow.points, again.posterior.flow.points)
    np.testing.assert_array_equal(right.updates["loss"], again.updates["loss"])

    transitions = method.warmup + method.draws
    assert right.n_simulations == method.chains * method.candidates + right.updates["gradients"].sum()
    if isinstance(method, cal.MALA):  # one gradient of each chain a transition, and one where it starts
        assert right.updates["gradients"].sum() == method.chains * (transitions + 1)
    else:
        assert right.updates["gradients"].sum() > method.chains * (transitions + 1)

    data = right.to_arviz(10**9)
    assert data.posterior["theta"].shape == (method.chains, method.draws)
    assert right.to_arviz(400).posterior["theta"].shape == (method.chains, 100)
    assert math.isnan(right.evaluation["kl"])


@pytest.mark.parametrize("name", CHAINS)
def test_the_density_of_chains_is_refused(name):
    with pytest.raises(ValueError, match="no density"):
        found(name).log_prob({"theta": jnp.zeros(())})


def test_chains_that_disagree_are_named():
    result = calibrated(problem(), cal.MALA(warmup=2, draws=20, replicates=1, evaluate_every=1))
    (sign,) = result.signatures
    assert sign["name"] == "chains disagree"
    assert sign["text"].startswith("R-hat of theta is ")
    assert not result.diagnostics["converged"]


@pytest.mark.parametrize("name", CHAINS)
def test_chains_stay_out_of_where_simulations_fail(name):
    """The posterior is then a truncated normal distribution."""
    result = calibrated(problem(limit=0.9), CHAINS[name])
    exact = truncnorm(-np.inf, (0.9 - MEAN) / SD, MEAN, SD)
    check_moments(result, exact.mean(), exact.std())
    assert np.max(result.posterior.flow.points[:, : int(result.posterior.flow.count)]) <= 0.9
    assert result.n_failed > 0
    assert np.all(result.failures["theta"] > 0.9)
    assert result.diagnostics["failed_candidates"] > 0


@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_simulations_that_always_fail_end_with_that_reason(name):
    nowhere = calibrated(problem(limit=-math.inf), CHAINS[name], throw=False)
    assert nowhere.result in (cal.Result.NON_FINITE, cal.Result.TOO_MANY_FAILURES)


def test_a_point_estimate_is_the_mode_with_the_curvature_there():
    result = found("Point")
    assert result.diagnostics["positive_definite"]
    np.testing.assert_allclose(result.diagnostics["precision_eigenvalues"], [SD**-2], rtol=1e-3)
    np.testing.assert_allclose(result.diagnostics["mode"]["theta"], MEAN, atol=1e-3)
    np.testing.assert_allclose(result.log_prob({"theta": jnp.asarray(0.3)}), norm(MEAN, SD).logpdf(0.3), atol=5e-3)
    assert result.n_simulations == 200 * 4 + 10 * (4 + 2)
    assert result.updates["gradients"].sum() == 200 * 4 + 10 * 2
    again = calibrated(problem(), POINT)
    np.testing.assert_array_equal(result.sample(0, 5)["theta"], again.sample(0, 5)["theta"])
    assert math.isfinite(result.evaluation["objective"])


def test_a_hessian_that_is_not_positive_definite_is_said_and_the_prior_s_width_taken():
    result = calibrated(problem(strength=-1.0), POINT)
    np.testing.assert_allclose(result.diagnostics["precision_eigenvalues"], [1 - SCALE**-2], rtol=1e-2)
    assert not result.diagnostics["positive_definite"]
    assert "not positive definite" in result.diagnostics["hessian"]
    assert result.diagnostics["directions_from_prior"] == 1
    np.testing.assert_allclose(result.sample(0, 4000)["theta"].std(), 1.0, rtol=0.05)


def test_a_start_that_fails_goes_back_and_is_counted():
    result = calibrated(problem(limit=0.5), dataclasses.replace(POINT, max_failed_fraction=1.0))
    assert result.n_failed > 0
    assert np.all(result.failures["theta"] > 0.5)
    assert 0.4 < result.diagnostics["mode"]["theta"] <= 0.5  # the loss falls up to where simulations fail
    assert "could not be taken" in result.diagnostics["hessian"]


def test_particles_are_the_abc_posterior_of_their_tolerance():
    made = problem(noise=SCALE)
    result = calibrated(made, ABC)
    grid = np.linspace(-6, 8, 20_001)
    half = SCALE * math.sqrt(2 * result.diagnostics["tolerance"])
    density = norm.pdf(grid) * (norm.cdf((DATUM + half - grid) / SCALE) - norm.cdf((DATUM - half - grid) / SCALE))
    density /= density.sum()
    mean = float(density @ grid)
    sd = math.sqrt(float(density @ (grid - mean) ** 2))
    assert half < 0.5 * SCALE  # near enough to be no prior
    # Copies had common ancestors before they moved: a third of the distinct particles is a cautious number.
    check_moments(result, mean, sd, effective=result.diagnostics["ess"] / 3)
    assert result.n_simulations == 12 * 1000
    tolerances = result.updates["tolerance"]
    assert np.all(np.diff(tolerances) < 0)
    again = calibrated(made, ABC)
    np.testing.assert_array_equal(result.posterior.flow.points, again.posterior.flow.points)


def test_particles_stay_out_of_where_simulations_fail():
    failing = calibrated(problem(noise=SCALE, limit=0.2), ABC)
    assert failing.n_failed > 0
    assert np.max(failing.sample(0, 4000)["theta"]) <= 0.2
    assert np.all(failing.failures["theta"] > 0.2)
    assert failing.updates["failed"].sum() == failing.n_failed


def test_particles_of_simulations_that_always_fail_end_with_that_reason():
    nothing = calibrated(problem(limit=-math.inf), ABC, throw=False)
    assert nothing.result is cal.Result.NON_FINITE


def test_abc_stops_at_its_tolerance_or_where_few_moves_are_accepted():
    stopping = dataclasses.replace(ABC, tolerance=1.0)
    row = {"update": 3, "loss": 0.5, "acceptance": 0.5}
    assert stopping.terminate([row | {"tolerance": 1.0}]) is cal.Result.CONVERGED
    assert stopping.terminate([row | {"tolerance": 1.1}]) is None
    assert stopping.terminate([row | {"tolerance": 1.1, "acceptance": 0.01}]) is cal.Result.CONVERGED


def test_equal_distances_do_not_hold_up_the_tolerance():
    from calibrant.inference._smc_abc import Population, _next_tolerance

    zero = jnp.zeros((), jnp.int32)
    distance = jnp.array([1.0] * 3 + [5.0] * 15 + [jnp.inf] * 2)
    population = Population(distance, jnp.arange(20), jnp.asarray(5.0), jnp.asarray(0.5), zero)
    assert _next_tolerance(population, 0.8, None) == 1.0
    assert _next_tolerance(population, 0.8, 2.0) == 2.0
    lonely = eqx.tree_at(lambda p: p.distance, population, distance.at[:2].set(5.0))
    assert _next_tolerance(lonely, 0.8, None) == 5.0


def test_gvi_spends_its_budget_of_simulations_and_no_more():
    made = problem()
    gvi = cal.GVI().with_budget(made, cal.Prior.of(made), 50_000)
    evaluations = 1 + gvi.max_updates // gvi.evaluate_every
    used = gvi.max_updates * gvi.runs_an_update(made, 1) + evaluations * gvi.runs_an_evaluation
    assert 0.8 * 50_000 < used <= 50_000


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_budget_of_too_few_simulations_is_refused(method):
    made = problem()
    with pytest.raises(ValueError, match=r"needs \d+ simulations or more, got 30"):
        method.with_budget(made, cal.Prior.of(made), 30)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_spends_its_budget_of_simulations_and_no_more(method):
    made = problem()
    prior = cal.Prior.of(made)
    within = method.with_budget(made, prior, 50_000)
    assert within.max_updates % within.evaluate_every == 0
    if isinstance(method, (cal.NUTS, cal.MALA)):
        assert within.max_simulations == 50_000
    elif isinstance(method, cal.SMCABC):
        assert 49_000 < within.max_updates * within.runs_an_update(made, 1) <= 50_000
    else:
        end = within.end_simulations * (within.starts + 2)
        assert 45_000 < within.max_updates * within.runs_an_update(made, 1) + end <= 50_000


def test_nuts_stops_when_its_simulations_are_spent():
    method = dataclasses.replace(CHAINS["NUTS"], max_simulations=3000)
    result = calibrated(problem(), method)
    assert result.result is cal.Result.BUDGET_SPENT
    assert 3000 <= result.n_simulations < 3000 + method.chains * 2**method.max_doublings
    assert 0 < int(result.posterior.flow.count) < method.draws
    assert np.isfinite(result.sample(0, 100)["theta"]).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        pytest.param(lambda: cal.NUTS(chains=0), "`chains`", id="NUTS without chains"),
        pytest.param(lambda: cal.NUTS(weight=0.0), "weight > 0", id="NUTS without a prior"),
        pytest.param(lambda: cal.NUTS(max_doublings=0), "max_doublings", id="NUTS without doublings"),
        pytest.param(
            lambda: cal.MALA(target_acceptance=1.0), "target_acceptance", id="MALA that accepts every proposal"
        ),
        pytest.param(lambda: cal.MALA(max_simulations=0), "max_simulations", id="MALA without simulations"),
        pytest.param(lambda: cal.Point(weight=0.0), "weight > 0", id="a point without a prior"),
        pytest.param(lambda: cal.Point(hessian_step=0.0), "hessian_step", id="a curvature over no step"),
        pytest.param(
            lambda: cal.Point(learning_rate=0.1, optimiser=cal.inference.default_optimiser()),
            "not both",
            id="a learning rate and an optimiser",
        ),
        pytest.param(lambda: cal.SMCABC(particles=3), "particles", id="ABC of three particles"),
        pytest.param(lambda: cal.SMCABC(alpha=1.0), "alpha", id="ABC that keeps every particle"),
        pytest.param(lambda: cal.SMCABC(tolerance=math.nan), "tolerance", id="ABC to no tolerance"),
        pytest.param(
            lambda: calibrated(problem(), cal.NUTS(estimator=cal.estimators.REBAR())),
            "trained as it goes",
            id="NUTS by an estimator that learns",
        ),
        pytest.param(
            lambda: calibrated(problem(), cal.Point(estimator=cal.FiniteDifferences(), horizon=cal.SlidingHorizon(1))),
            "no effect",
            id="a horizon of differences",
        ),
        pytest.param(
            lambda: calibrated(problem(), cal.MALA(horizon=cal.SlidingHorizon(1, keep=("x",)))),
            "keeps 'x'",
            id="a horizon that keeps an unknown parameter",
        ),
        pytest.param(
            lambda: calibrated(problem(), ABC, start=POINT.init(problem(), cal.Prior.of(problem()), 0).posterior),
            "leave `start` out",
            id="ABC from a start",
        ),
    ],
)
def test_a_method_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_result_opens_again(name, tmp_path):
    made, method, result = problem(), METHODS[name], found(name)
    folder = result.save(tmp_path / "run")
    skeleton = method.init(made, result.prior, 0).posterior
    again = cal.Posterior(result.prior, load_arrays(folder / "flow.h5", skeleton.flow))
    np.testing.assert_array_equal(again.sample(5, 10)["theta"], result.sample(5, 10)["theta"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["method"] == type(method).__name__
    assert manifest["diagnostics"] == result.diagnostics
    assert manifest["result"]["simulations"] == result.n_simulations


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_goes_on_to_the_same_bits(name, tmp_path):
    method, whole = METHODS[name], found(name)
    killed = {"progress": Killer(2), "checkpoints": cal.Checkpoints(tmp_path / "c", every=0.0)}
    with pytest.raises(Killed):
        cal.calibrate(problem(), method=method, **killed)
    resumed = calibrated(problem(), method, checkpoints=cal.Checkpoints(tmp_path / "c"))
    for one, two in zip(
        *(jax.tree.leaves(eqx.filter(x.posterior, eqx.is_array)) for x in (whole, resumed)), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    for name, x in whole.updates.items():
        np.testing.assert_array_equal(x, resumed.updates[name])
    assert resumed.diagnostics == whole.diagnostics
    assert resumed.n_simulations == whole.n_simulations


CONFIG = """
[model]
name = "random-walk"
options = {{ walkers = 2 }}
steps = 8
[data]
synthetic = {{ seed = 1 }}
[loss]
name = "mean-squared-error"
[method]
{method}
"""


MALA = 'name = "mala"\nwarmup = 30\ndraws = 60\nreplicates = 2\nevaluate_every = 10'


def test_a_method_of_a_configuration_is_run_and_read_back(here, monkeypatch, capsys):
    (here / "c.toml").write_text(CONFIG.format(method=MALA))
    code, out, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet")
    assert (code, err) == (0, "")
    assert "KL" not in out
    *_, result = read_run(here / "runs/c")
    manifest = json.loads((here / "runs/c/manifest.json").read_text())
    assert result.method == "MALA"
    assert result.diagnostics == manifest["diagnostics"]
    assert len(result.updates["acceptance"]) == 90
    assert result.history[-1]["draws"] == 60
    assert result.posterior.chains(10**9)["p"].shape == (4, 60)
    page = (here / "runs/c/report.html").read_text()
    assert "R-hat" in page
    code, _, err = run(monkeypatch, capsys, "report", "runs/c")
    assert code == 0, err
    assert (here / "runs/c/report.html").read_text() == page


def test_methods_are_compared_at_equal_numbers_of_simulations(here, monkeypatch, capsys):
    (here / "c.toml").write_text(CONFIG.format(method=MALA))
    arguments = ("--methods", "gvi,smc-abc", "--budget", "2000", "--quiet")
    code, _, err = run(monkeypatch, capsys, "compare", "c.toml", *arguments, "--datasets", "2")
    assert (code, err) == (0, "")
    folder = here / "comparisons/c"
    assert {p.name for p in folder.iterdir()} == {"comparison.csv", "comparison.json", "comparison.png"}
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert [(row["method"], row["dataset"]) for row in rows] == [(m, k) for k in "01" for m in ("gvi", "smc-abc")]
    for row in rows:
        assert 1000 < int(row["simulations"]) <= 2000
        assert math.isfinite(float(row["loss"]))
        assert (row["objective"] == "") == (row["method"] == "smc-abc")
        assert row["truths"] == "1"
    assert rows[1]["gradients"] == "0"
    assert (folder / "comparison.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("method", "arguments", "expected"),
    [
        pytest.param(
            'name = "nutz"', ("calibrate", "c.toml"), "its name is one of gvi, point", id="by an unknown method"
        ),
        pytest.param(
            'name = "nuts"\nsimulations = 5',
            ("calibrate", "c.toml"),
            "method.simulations: there is no such field",
            id="by NUTS with a field of GVI",
        ),
        pytest.param(
            'name = "point"\nweight = 0', ("calibrate", "c.toml"), "method.weight", id="by a point without a prior"
        ),
        pytest.param(
            'name = "nuts"',
            ("calibrate", "c.toml", "--updates", "5"),
            "set warmup and draws",
            id="by NUTS for a number of updates",
        ),
        pytest.param('name = "point"', ("gradients", "c.toml"), "looks at those of gvi", id="of gradients of a point"),
        pytest.param("", ("compare", "c.toml", "--methods", "gvi,abc"), "no method 'abc'", id="with an unknown method"),
        pytest.param("", ("compare", "c.toml", "--methods", "gvi,gvi"), "named twice", id="of a method with itself"),
        pytest.param(
            "", ("compare", "c.toml", "--budget", "10"), "simulations or more, got 10", id="by ten simulations"
        ),
        pytest.param(
            "weight = 0",
            ("compare", "c.toml", "--methods", "gvi,nuts"),
            "what gvi has here is not for nuts",
            id="with NUTS where there is no prior",
        ),
        pytest.param(
            "",
            ("compare", "boarding-school", "--datasets", "2"),
            "needs synthetic data",
            id="on several sets of real data",
        ),
    ],
)
def test_a_calibration_or_comparison_is_refused(method, arguments, expected, here, monkeypatch, capsys):
    (here / "c.toml").write_text(CONFIG.format(method=method))
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert expected in " ".join(err.split())
    assert "Traceback" not in err
    assert sorted(p.name for p in here.iterdir()) == ["c.toml"]
