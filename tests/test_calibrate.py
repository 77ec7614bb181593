"""The loop: results, failures, stopping, saving, repeating, not recompiling."""

import functools
import itertools
import json

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import toys
from compiling import no_compilation

import calibrant as cal
from calibrant._files import load_arrays


def drift_problem(loss=None):
    return cal.Problem(toys.Drift(), jnp.ones(3), loss or cal.losses.MeanSquaredError(), steps=3)


def quick(**kwargs):
    """A normal posterior compiles soonest."""
    defaults = {"max_updates": 40, "evaluate_every": 20, "evaluation_simulations": 20, "kl_samples": 50}
    return cal.GVI(**{"family": cal.posteriors.FullRankGaussian(), **defaults, **kwargs})


@functools.cache
def drifted():
    return cal.calibrate(drift_problem(), method=quick(), progress=False)


def test_calibrations_with_equal_seeds_give_equal_bits():
    first, second, other = (
        cal.calibrate(drift_problem(), method=quick(), seed=seed, progress=False) for seed in (1, 1, 2)
    )
    one, two = (jax.tree.leaves(eqx.filter(x.posterior, eqx.is_array)) for x in (first, second))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first.updates["loss"], second.updates["loss"])
    assert first.history == second.history
    assert not np.array_equal(first.updates["loss"], other.updates["loss"])


def test_a_calibration_may_begin_where_another_ended():
    first = drifted()
    again = cal.calibrate(drift_problem(), method=quick(max_updates=1), start=first.posterior, progress=False)
    assert again.history[0]["objective"] == first.history[-1]["objective"] == min(x["objective"] for x in first.history)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        pytest.param(
            {"method": quick(family=cal.posteriors.MaskedAutoregressiveFlow())},
            "another family",
            id="of another family",
        ),
        pytest.param({"priors": {"theta": dist.Normal(0.3, 0.2)}}, "other priors", id="with other priors"),
    ],
)
def test_a_start_is_refused(changed, match):
    problem = drift_problem()
    start = quick().init(problem, cal.Prior.of(problem), 0).posterior
    with pytest.raises(ValueError, match=match):
        cal.calibrate(problem, **{"method": quick(), **changed}, start=start, progress=False)


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(cal.estimators.REBAR(), id="REBAR"),
        pytest.param(cal.estimators.RELAX(), id="RELAX", marks=pytest.mark.slow),
        pytest.param(
            cal.estimators.Pathwise(cal.GumbelSoftmax(lambda update: 1.0 * 0.9**update)),
            id="Gumbel-softmax on a schedule",
        ),
        pytest.param(cal.Corrected(), id="corrected"),
    ],
)
def test_an_estimator_that_changes_with_updates_does_so_however_many_run_at_once(estimator):
    problem = cal.Problem(toys.Flips(2), jnp.ones(3), cal.losses.MeanSquaredError(), steps=3)
    prior = cal.Prior({"p": dist.Uniform(0.0, 1.0)})
    method = quick(estimator=estimator, replicates=2)
    states = [method.init(problem, prior, 0)]
    for _ in range(2):
        state, record = method.step(problem, states[-1], 2)
        assert np.all(np.isfinite(record.gradient_norm))
        states.append(state)
    learnt = [(s.estimator, s.estimator_optimiser) for s in states]
    controls = [jax.tree.leaves(eqx.filter(x, eqx.is_inexact_array)) for x in learnt]
    for before, after in itertools.pairwise(controls):
        assert all(np.any(a != b) for a, b in zip(before, after, strict=True))
    # Four updates at once are two and two.
    whole = method.step(problem, states[0], 4)[0]
    for a, b in zip(
        jax.tree.leaves(eqx.filter(whole, eqx.is_array)),
        jax.tree.leaves(eqx.filter(states[-1], eqx.is_array)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "priors",
    [{"theta": dist.LogNormal(0.0, 0.5)}, {"theta": dist.Uniform(0.0, 2.0)}, {"theta": dist.Gamma(2.0, 1.0)}],
    ids=["log-normal", "uniform", "gamma"],
)
def test_a_start_may_have_any_prior(priors):
    first = cal.calibrate(drift_problem(), priors, method=quick(max_updates=2), progress=False)
    again = cal.calibrate(drift_problem(), priors, method=quick(max_updates=2), start=first.posterior, progress=False)
    assert again.history[0]["objective"] == min(x["objective"] for x in first.history)


def test_a_start_is_as_narrow_as_asked_and_its_steps_fall_with_the_learning_rate():
    method = quick(family=cal.posteriors.FullRankGaussian(0.2), learning_rate=1e-2, final_learning_rate=1e-6)
    problem = drift_problem()
    state = method.init(problem, cal.Prior.of(problem), 0)
    narrow, prior = (x.sample(jax.random.key(0), 4000) for x in (state.posterior, state.posterior.prior))
    for name in prior:
        np.testing.assert_allclose(narrow[name].std() / prior[name].std(), 0.2, rtol=0.3)
    steps = []
    for _ in range(2):  # the first twenty updates and the last
        before = jax.tree.leaves(eqx.filter(state.posterior.flow, eqx.is_inexact_array))
        state, _ = method.step(problem, state, 20)
        after = jax.tree.leaves(eqx.filter(state.posterior.flow, eqx.is_inexact_array))
        steps.append(sum(float(jnp.abs(a - b).sum()) for a, b in zip(after, before, strict=True)))
    assert 0 < steps[1] < 0.5 * steps[0]


def test_nothing_is_compiled_after_the_first_updates():
    method, problem = quick(), drift_problem()
    prior = cal.Prior.of(problem)
    state = method.init(problem, prior, 0)
    state, _ = method.step(problem, state, 20)
    method.evaluate(problem, state, 0)
    with jax.log_compiles(), no_compilation():
        state, _ = method.step(problem, state, 20)
        method.evaluate(problem, state, 0)
    assert int(state.update) == 40


@pytest.mark.parametrize(
    "family",
    [
        cal.posteriors.FullRankGaussian(),
        cal.posteriors.MaskedAutoregressiveFlow(layers=1),
        pytest.param(cal.posteriors.MaskedAutoregressiveFlow(layers=1, knots=4), marks=pytest.mark.slow),
        pytest.param(cal.posteriors.CouplingSplineFlow(layers=2), marks=pytest.mark.slow),
    ],
    ids=["gaussian", "affine", "spline", "coupling"],
)
def test_a_second_calibration_compiles_nothing(family):
    problem = cal.Problem(toys.Flips(), jnp.ones(3), cal.losses.MeanSquaredError(), steps=3)
    priors = {"p": dist.Normal(0.0, 1.0), "q": dist.Uniform(0.0, 1.0)}
    first = cal.calibrate(problem, priors, method=quick(family=family), progress=False)
    with no_compilation():
        second = cal.calibrate(problem, priors, method=quick(family=family), progress=False, seed=1)
    assert first.evaluation != second.evaluation


class Fragile(toys.Drift):
    """Not finite for theta above 0.5."""

    def observe(self, params, state, inputs_t, rng):
        return state / jnp.where(params.theta > 0.5, 0.0, 1.0) * jnp.where(params.theta > 0.5, 0.0, 1.0)


def test_failed_simulations_are_masked_counted_and_located():
    problem = cal.Problem(Fragile(), jnp.ones(3), cal.losses.MeanSquaredError(), steps=3)
    result = cal.calibrate(problem, method=quick(max_failed_fraction=1.0), progress=False)
    assert result.n_failed > 0
    assert result.updates["failed"].sum() == result.n_failed
    assert np.all(result.failures["theta"] > 0.5)
    assert len(result.failures["theta"]) == result.n_failed
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result.sample(0, 100)))
    some = result.updates["failed"] < 5
    assert np.all(np.isfinite(result.updates["loss"][some]))
    assert np.all(np.isnan(result.updates["loss"][~some]))


def test_a_calibration_with_more_failures_than_allowed_is_an_error_that_holds_it():
    problem = cal.Problem(Fragile(), jnp.ones(3), cal.losses.MeanSquaredError(), steps=3)
    with pytest.raises(cal.CalibrationError, match="max_failed_fraction") as error:
        cal.calibrate(problem, method=quick(max_failed_fraction=0.01), progress=False)
    assert error.value.calibration.result is cal.Result.TOO_MANY_FAILURES
    quiet = cal.calibrate(problem, method=quick(max_failed_fraction=0.01), progress=False, throw=False)
    assert quiet.result is cal.Result.TOO_MANY_FAILURES


def test_an_objective_that_is_never_finite_is_an_error():
    problem = drift_problem(lambda x, y, params: jnp.nan * jnp.sum(x))
    with pytest.raises(cal.CalibrationError, match=r"not finite|max_failed_fraction"):
        cal.calibrate(problem, method=quick(max_failed_fraction=1.0), progress=False)


def test_patience_stops_early_and_keeps_the_best():
    method = quick(max_updates=10_000, patience=3, learning_rate=1e-2)
    result = cal.calibrate(drift_problem(), method=method, progress=False)
    assert result.result is cal.Result.CONVERGED
    assert len(result.updates["loss"]) < 10_000
    objective = [row["objective"] for row in result.history]
    assert objective.index(min(objective)) == len(objective) - 1 - 3


def test_an_interrupt_returns_the_best_so_far():
    class Interrupting(cal.AbstractProgress):
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def note(self, what):
            pass

        def advance(self, updates, message):
            raise KeyboardInterrupt

    result = cal.calibrate(drift_problem(), method=quick(max_updates=400), progress=Interrupting())
    assert result.result is cal.Result.INTERRUPTED
    assert len(result.updates["loss"]) == 2  # a tenth of what is between evaluations
    assert [row["update"] for row in result.history] == [0, 2]


def test_progress_is_told_of_every_update():
    class Counting(cal.AbstractProgress):
        told: list

        def __enter__(self):
            self.told = []
            return self

        def __exit__(self, *exc):
            pass

        def note(self, what):
            pass

        def advance(self, updates, message):
            self.told.append(updates)

    counting = Counting()
    result = cal.calibrate(drift_problem(), method=quick(max_updates=50), progress=counting)
    assert sum(counting.told) == 50 == len(result.updates["loss"])
    assert [row["update"] for row in result.history] == [0, 20, 40, 50]
    assert max(counting.told) == 2


def test_simulations_are_counted():
    """Central differences run each value of the one parameter, and a step to either side."""
    for estimator, runs in ((cal.estimators.Pathwise(), 3), (cal.FiniteDifferences(), 9)):
        method = quick(estimator=estimator, simulations=3, max_updates=4)
        result = cal.calibrate(drift_problem(), method=method, progress=False)
        assert result.n_simulations == 4 * runs


@pytest.mark.parametrize(
    "estimator",
    [
        cal.estimators.Pathwise(),
        cal.estimators.ScoreFunction(),
        cal.FiniteDifferences(),
        cal.FlowScore(),
        cal.Corrected(),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_every_gradient_finds_the_mode(estimator):
    problem = cal.Problem(toys.Drift(), jnp.array([1.0]), cal.losses.GaussianLogLikelihood(0.5), steps=1)
    method = cal.GVI(
        simulations=20, max_updates=600, learning_rate=1e-2, evaluate_every=200, estimator=estimator, kl_samples=200
    )
    draws = np.asarray(cal.calibrate(problem, method=method, progress=False).sample(0, 5000)["theta"])
    assert abs(draws.mean() - 0.8) < 0.15


def test_central_differences_of_a_quadratic_loss_are_its_derivative():
    """The loss of `Drift` is quadratic in its parameter, so the step does not matter, and nothing is random."""
    problem = drift_problem()
    prior = cal.Prior.of(problem)
    records = []
    for estimator in (cal.estimators.Pathwise(), cal.FiniteDifferences(0.01), cal.FiniteDifferences(1.0)):
        method = quick(estimator=estimator)
        _, record = method.step(problem, method.init(problem, prior, 0), 5)
        records.append(record)
    for record in records[1:]:
        np.testing.assert_allclose(record.gradient_norm, records[0].gradient_norm, rtol=2e-3)
        np.testing.assert_allclose(record.loss, records[0].loss, rtol=2e-3)
        np.testing.assert_allclose(record.signal_to_noise, records[0].signal_to_noise, rtol=2e-2)


def test_a_failure_at_either_side_of_a_difference_masks_the_simulation():
    differences = cal.FiniteDifferences(0.5)
    z = jnp.zeros((2, 2))
    points, words = differences.stencil(z, cal.seeds(0, (2, 1)))
    assert points.shape == (10, 2)
    assert np.all(np.asarray(words[:5]) == np.asarray(words[0]))
    losses = jnp.sum(points, axis=1).at[3].set(jnp.nan)
    _, finite, g = differences.combine(losses, jnp.isfinite(losses), 2)
    np.testing.assert_array_equal(finite, [False, True])
    np.testing.assert_allclose(g[1], 1.0)


def test_weight_zero_has_no_pull_to_the_prior_and_reports_the_divergence():
    result = cal.calibrate(drift_problem(), method=quick(weight=0.0, learning_rate=5e-2), progress=False)
    assert result.updates["kl"][-1] > 0.1


def test_a_saved_run_opens_with_its_draws_and_the_record_of_its_updates(tmp_path):
    import xarray

    result = drifted()
    folder = result.save(tmp_path / "run", {"note": "hello"})
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["note"] == "hello"
    assert manifest["result"]["successful"]
    assert manifest["seed"] == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == list(range(1, 41))
    assert "evaluation_objective" in rows[-1]
    with xarray.open_dataset(folder / "posterior.nc", group="posterior", engine="h5netcdf") as data:
        assert data["theta"].dims == ("chain", "draw")
    again = cal.Posterior(result.prior, load_arrays(folder / "flow.h5", result.posterior.flow))
    np.testing.assert_array_equal(again.sample(5, 10)["theta"], result.sample(5, 10)["theta"])
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_a_saved_flow_with_an_array_less_is_refused(tmp_path):
    result = drifted()
    folder = result.save(tmp_path / "run")
    with h5py.File(folder / "flow.h5", "a") as file:
        del file[next(iter(file))]
    with pytest.raises(ValueError, match="another flow"):
        load_arrays(folder / "flow.h5", result.posterior.flow)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        pytest.param(lambda: cal.GVI(simulations=0), "simulations", id="no simulations"),
        pytest.param(lambda: cal.GVI(kl_samples=2), "kl_samples", id="too few draws for a divergence"),
        pytest.param(lambda: cal.GVI(weight=-1.0), "weight", id="a negative weight"),
        pytest.param(lambda: cal.GVI(patience=0), "patience", id="no patience"),
        pytest.param(
            lambda: cal.GVI(max_failed_fraction=2.0), "max_failed_fraction", id="more failures than simulations"
        ),
        pytest.param(lambda: cal.posteriors.FullRankGaussian(0.0), "above 0", id="a start without width"),
        pytest.param(lambda: cal.FiniteDifferences(0.0), "above 0", id="differences over no step"),
        pytest.param(
            lambda: cal.calibrate(
                drift_problem(),
                {"theta": dist.Gamma(2.0, 1.0)},
                method=quick(family=cal.posteriors.FullRankGaussian(0.5)),
            ),
            "quantile function",
            id="a narrow start in a prior without quantiles",
        ),
        pytest.param(
            lambda: cal.GVI(final_learning_rate=1e-3, optimiser=cal.inference.default_optimiser()),
            "not both",
            id="a final learning rate and an optimiser",
        ),
        pytest.param(
            lambda: cal.GVI(learning_rate=1e-3, optimiser=cal.inference.default_optimiser()),
            "not both",
            id="a learning rate and an optimiser",
        ),
        pytest.param(
            lambda: drift_problem(cal.losses.GaussianLogLikelihood("theta")),
            "rename",
            id="one name for a parameter of the model and of the loss",
        ),
        pytest.param(
            lambda: cal.Problem(toys.Drift(), jnp.full(3, jnp.nan), cal.losses.MeanSquaredError(), steps=3),
            "no observed",
            id="blanks alone",
        ),
        pytest.param(
            lambda: cal.Problem(toys.Drift(), jnp.full(3, jnp.inf), cal.losses.MeanSquaredError(), steps=3),
            "infinite",
            id="infinite data",
        ),
        pytest.param(
            lambda: cal.Problem(toys.Drift(), jnp.ones(3), cal.losses.MeanSquaredError()),
            "needs `steps`",
            id="no number of steps",
        ),
        pytest.param(lambda: toys.DriftParams().replace({"x": 1.0}), "no parameter 'x'", id="an unknown parameter"),
        pytest.param(
            lambda: cal.simulate(toys.Drift(), toys.FlipsParams(), seed=0, steps=3),
            "takes parameters of class",
            id="parameters of another model",
        ),
        pytest.param(
            lambda: cal.simulate(toys.Lags(), toys.LagsParams(), seed=0, steps=3, inputs=np.ones(4)),
            "cover 4 steps",
            id="inputs of more steps",
        ),
        pytest.param(lambda: cal.Incidence(np.array([0, 5]), 3), "venues from 0", id="an agent in no venue that is"),
        pytest.param(lambda: cal.models.BrockHommes(0), "at least one agent", id="a market without agents"),
    ],
)
def test_a_model_problem_or_method_is_refused_with(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_horizon_that_keeps_an_unknown_parameter_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="keeps 'x'"):
        cal.calibrate(drift_problem(), method=quick(horizon=cal.SlidingHorizon(1, keep=("x",))), progress=False)


def test_a_step_that_changes_the_shape_of_the_state_is_refused():
    class Growing(toys.Drift):
        def step(self, params, state, inputs_t, rng):
            return jnp.stack([state, state])

    with pytest.raises(ValueError, match=r"Growing\.step must return a state like"):
        cal.simulate(Growing(), toys.DriftParams(), seed=0, steps=3)


def test_an_ensemble_loss_of_one_replicate_is_refused():
    with pytest.raises(ValueError, match="replicates"):
        cal.calibrate(drift_problem(cal.losses.EnergyScore()), method=quick(), progress=False)


def test_a_calibration_takes_replicates_and_priors_of_ones_own():
    problem = drift_problem(cal.losses.EnergyScore())
    result = cal.calibrate(problem, {"theta": dist.Uniform(0.0, 1.0)}, method=quick(replicates=3), progress=False)
    assert result.n_simulations == 40 * 5 * 3
