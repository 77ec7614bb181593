"""Gradient estimators against the truth, by enumeration of every outcome."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import toys
from covering import product
from enumerated import (
    CASES,
    ENOUGH,
    N,
    Squares,
    estimate,
    estimates,
    problem_of,
    truth_of,
    truth_of_sums,
    with_a_sum_over_times,
    with_enough_or_many,
)
from registry import ESTIMATORS

import calibrant as cal
from calibrant._sampling import Hard

pytestmark = pytest.mark.usefixtures("x64")


UNBIASED = [name for name, (estimator, _) in ESTIMATORS.items() if estimator.unbiased]


@pytest.mark.parametrize(
    ("estimator", "name", "many"),
    with_enough_or_many(
        UNBIASED,
        CASES,
        soon=lambda estimator, name: name == "contagion" or (name == "choice" and "pooled" not in estimator),
    ),
)
def test_the_mean_of_an_unbiased_estimator_is_the_enumerated_derivative(estimator, name, many):
    estimator, replicates = ESTIMATORS[estimator]
    problem, truth = problem_of(name), truth_of(name)
    if getattr(estimator, "reward_to_go", False):
        problem, truth = with_a_sum_over_times(name), truth_of_sums(name)
    exact = estimator.runs(problem, truth.size) >= 32  # it runs every outcome, and has no noise
    simulations = 4 * N if many else ENOUGH[name]
    mean, error = estimate(problem, estimator, 40 if exact else 2 * simulations // replicates // 40 * 40, replicates)
    assert error.max() <= 0.02 * np.abs(truth).max()
    assert np.all(np.abs(mean - truth) <= 4 * error + (1e-10 if exact else 1e-12))


@pytest.mark.parametrize("name", CASES)
def test_enumeration_is_the_sum_over_scripted_outcomes(name):
    """Against a loop over scripts that knows nothing of the package's own."""
    got = estimates(problem_of(name), cal.estimators.Enumeration(), 1, 1)[0, 0]
    np.testing.assert_allclose(got, truth_of(name), rtol=1e-10, atol=1e-12)


def test_truths_have_both_signs():
    signs = np.sign(np.concatenate([truth_of(name) for name in CASES]))
    assert np.sum(signs > 0) >= 3
    assert np.sum(signs < 0) >= 3


def test_a_reward_to_go_is_refused_for_a_loss_of_an_ensemble():
    problem = cal.Problem(toys.Flips(1), jnp.zeros(3), cal.losses.CustomLoss(lambda x, y, p: jnp.mean(x)), steps=3)
    with pytest.raises(ValueError, match="of an ensemble"):
        estimates(problem, cal.estimators.ScoreFunction(reward_to_go=True), 1, 4)


def test_a_reward_to_go_is_refused_for_a_loss_that_is_no_sum_over_times():
    with pytest.raises(ValueError, match="leave `reward_to_go` out"):
        estimates(problem_of("flips-2-agents"), cal.estimators.ScoreFunction(reward_to_go=True), 1, 4)


@pytest.mark.parametrize("length", [1, 3])
def test_terms_of_a_loss_add_up_to_it_and_know_nothing_of_later_outputs(length):
    x, y = jnp.array([1.0, 4.0, 2.0, 6.0, 5.0, 3.0, 9.0]), jnp.array([2.0, 3.0, jnp.nan, 5.0, 1.0, 2.0, 8.0])
    for loss in (cal.losses.MeanSquaredError(2.0), cal.losses.PoissonLogLikelihood(), Squares()):
        loss = cal.losses.Streams({"a": cal.losses.Periods(loss, length) if length > 1 else loss}, {"a": 0.7})
        terms = loss.terms({"a": x}, {"a": y}, {})
        np.testing.assert_allclose(jnp.sum(terms), loss({"a": x[None]}, {"a": y}, {}), rtol=1e-12)
        np.testing.assert_array_equal(loss.terms({"a": x.at[4:].add(1.0)}, {"a": y}, {})[:3], terms[:3])
    assert cal.losses.EnergyScore().terms(x, y, {}) is None


#: Those whose bias goes with their step, central differences, have a test of their own.
BIASED = {
    name: estimator
    for name, (estimator, _) in ESTIMATORS.items()
    if not estimator.unbiased and not hasattr(estimator, "step")
} | {
    "soft-gumbel": cal.estimators.Pathwise(cal.GumbelSoftmax(0.5, straight_through=False)),
    "hard": cal.estimators.Pathwise(Hard()),
}


def seen_as_biased(estimator):
    """The first three cases, or fewer, in which the mean is not the enumerated derivative."""
    failed = []
    for name in CASES:
        mean, error = estimate(problem_of(name), estimator, N)
        if np.any(np.abs(mean - truth_of(name)) > 4 * error + 1e-12):
            failed.append(name)
        if len(failed) == 3:
            break
    return failed


@pytest.mark.parametrize("estimator", BIASED)
def test_the_bias_of_a_biased_estimator_is_seen(estimator):
    assert len(seen_as_biased(BIASED[estimator])) == 3


def test_a_score_function_that_is_a_tenth_too_small_is_seen_as_biased():
    class Broken(cal.estimators.ScoreFunction):
        def losses(self, problem, run, values, seeds):
            losses, trajectories = super().losses(problem, run, values, seeds)
            return jax.lax.stop_gradient(losses) + 0.9 * (losses - jax.lax.stop_gradient(losses)), trajectories

    assert len(seen_as_biased(Broken())) == 3


@pytest.mark.parametrize("name", ["flips-2-agents", "choice", "trade"])
def test_differences_have_what_jumps_of_discrete_draws_contribute(name):
    """Against the enumerated derivative; the step's own error, of order step^2, is left out by Richardson's rule."""
    problem, n = problem_of(name), 40_000
    halves = [estimates(problem, cal.estimators.FiniteDifferences(step), n, 1)[0] for step in (0.2, 0.4)]
    fine = (4 * halves[0] - halves[1]) / 3
    mean, error = fine.mean(0), fine.std(0, ddof=1) / np.sqrt(n)
    assert np.all(error < 0.02)
    assert np.all(np.abs(mean - truth_of(name)) <= 4 * error + 1e-12)


def test_differences_in_coordinates_are_differences_in_the_parameter():
    problem, n = problem_of("flips-2-agents"), 50
    prior = cal.Prior({k: dist.Normal(getattr(problem.params, k), 2.0) for k in ("p", "q")})
    differences = cal.FiniteDifferences(0.1)
    points, seeds = differences.stencil(jnp.zeros((n, 2)), cal.seeds(11, (1, n, 1))[0])
    out = cal.expect(problem, jax.vmap(prior.constrain)(points), seeds=seeds)
    by_coordinates = differences.combine(out.losses, out.finite, n)[2]
    by_value = estimates(problem, cal.FiniteDifferences(0.2, {"p": 1.0}), n, 1)[0]
    np.testing.assert_allclose(by_coordinates, 2.0 * by_value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("replicates", [1, 3])
def test_baselines_leave_the_mean_alone(replicates):
    mean, error = estimate(problem_of("flips-2-agents"), cal.estimators.ScoreFunction(), 20_000, replicates)
    assert np.all(np.abs(mean - truth_of("flips-2-agents")) <= 4 * error)


def accepted(estimator, replicates):
    """An epidemic, as small as the estimator needs it."""
    for agents, steps in ((30, 6), (4, 1)):
        model = cal.models.SIR.small_world(agents, **({"household": 2, "group": 4} if agents < 10 else {}))
        mse = cal.losses.MeanSquaredError()
        data = {"infected": np.full(steps, 8.0), "recovered": np.full(steps, 2.0)}
        loss = cal.losses.Streams({"infected": mse, "recovered": mse})
        problem = cal.Problem(model, data, loss, params=model.Params(initial=2.0), steps=steps)
        if estimator.runs(problem, 2) < 5000:
            return problem
    raise AssertionError(estimator)


FOUR_AT_ONCE = {"checkpointed": cal.CheckpointedReverseMode(), "hybrid": cal.HybridMode()}


@pytest.mark.parametrize(
    ("name", "mode"),
    product(
        ESTIMATORS,
        FOUR_AT_ONCE,
        soon=lambda name, mode: (
            mode == "hybrid" and name in ("straight-through", "controlled-score", "branching", "finite-differences")
        ),
    ),
)
def test_a_gradient_does_not_depend_on_how_many_simulations_run_at_once(name, mode):
    estimator, replicates = ESTIMATORS[name]
    problem = accepted(estimator, replicates)
    estimator = estimator.prepare(problem, jax.random.key(0))
    values = {"beta": jnp.array([0.3, 0.9, 1.5]), "gamma": jnp.array([0.1, 0.3, 0.2])}
    seeds = cal.seeds(2, (3, replicates))
    results = []
    for each, at_once in ((cal.ReverseMode(), None), (FOUR_AT_ONCE[mode], 4)):

        def total(values, mode=each, at_once=at_once):
            out = cal.expect(problem, values, seeds=seeds, estimator=estimator, mode=mode, simulations_at_once=at_once)
            return jnp.sum(out.losses), out.losses

        gradient, losses = jax.jit(jax.grad(total, has_aux=True))(values)
        results.append((losses, gradient["beta"], gradient["gamma"]))
    for whole, some, rtol in zip(*results, (1e-13, 1e-9, 1e-9), strict=True):
        np.testing.assert_allclose(some, whole, rtol=rtol)


def _of_an_energy_score(replicates, estimator=None):
    problem = cal.Problem(toys.Flips(1), jnp.ones(3), cal.losses.EnergyScore(), steps=3)
    return cal.expect(problem, {"p": jnp.full((2,), 0.4)}, seeds=cal.seeds(0, (2, replicates)), estimator=estimator)


def test_the_score_function_of_an_ensemble_leaves_one_replicate_out():
    assert np.all(np.isfinite(_of_an_energy_score(3, cal.estimators.ScoreFunction()).losses))


def test_an_ensemble_too_small_to_leave_one_replicate_out_is_refused():
    with pytest.raises(ValueError, match="set `replicates` to 3"):
        _of_an_energy_score(2, cal.estimators.ScoreFunction())


def test_a_loss_of_an_ensemble_is_refused_for_one_replicate():
    with pytest.raises(ValueError, match="at least 2 replicates"):
        _of_an_energy_score(1)


def _expected(values=None, *, seeds=(1, 2), estimator=None):
    problem = cal.Problem(toys.Flips(1), jnp.ones(3), cal.losses.MeanSquaredError(), steps=3)
    values = {"p": jnp.array([0.4])} if values is None else values
    return cal.expect(problem, values, seeds=cal.seeds(0, seeds), estimator=estimator)


def _simulated(rule, recorder=None):
    model = toys.Flips(1)
    return cal.simulate(model, model.Params(), seed=0, steps=3, rule=rule, recorder=recorder)


def _begun(method):
    problem = cal.Problem(toys.Flips(1), jnp.ones(3), cal.losses.MeanSquaredError(), steps=3)
    return method.init(problem, cal.Prior({"p": dist.Uniform(0.0, 1.0)}), 0)


REFUSED = {
    "a score function of one simulation": (
        lambda: _expected(seeds=(1, 1), estimator=cal.estimators.ScoreFunction()),
        "at least two simulations",
    ),
    "REBAR of one simulation": (
        lambda: _expected(seeds=(1, 1), estimator=cal.estimators.REBAR()),
        "at least two simulations",
    ),
    "a flow score of one value": (
        lambda: _begun(cal.GVI(estimator=cal.FlowScore(), simulations=1)),
        "at least 2 simulations",
    ),
    "RELAX before it is prepared": (lambda: _expected(estimator=cal.estimators.RELAX()), "call its `prepare"),
    "a parameter that is none": (lambda: _expected({"pp": jnp.array([0.4])}), "no parameter 'pp'"),
    "rows of seeds for other values": (lambda: _expected(seeds=(2, 1)), "rows of seeds"),
    "seeds without replicates": (lambda: _expected(seeds=2), r"\(batch, replicates, 2\)|Type-check error"),
    "the probability of relaxed draws": (
        lambda: _simulated(cal.GumbelSoftmax(0.5, straight_through=False), cal.LogProbability()),
        "relaxed samples",
    ),
    "a temperature of zero": (lambda: cal.GumbelSoftmax(0.0), "positive temperature"),
    "REBAR at temperature zero": (lambda: cal.estimators.REBAR(0.0), "positive temperature"),
    "a scheduled temperature without updates": (
        lambda: _simulated(cal.GumbelSoftmax(lambda update: 1.0 / (1 + update))),
        "follows a schedule",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_estimate_that_cannot_be_made_is_refused(what):
    make, match = REFUSED[what]
    with pytest.raises((ValueError, TypeError), match=match):
        make()
