"""Gradient estimators against the truth, by enumeration of every outcome."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import toys
from covering import product
from jax.flatten_util import ravel_pytree
from registry import ESTIMATORS

import calibrant as cal
from calibrant._sampling import AbstractSamplingRule, Hard

pytestmark = pytest.mark.usefixtures("x64")


class Scripted(AbstractSamplingRule):
    """Outcomes from a script instead of at random. `script` has one entry a draw and agent."""

    script: jax.Array
    cursor: list
    #: Whether those who do not decide, or cannot, are scripted as 0, so that every outcome counts once.
    once: list
    hard = True

    def _next(self):
        self.cursor[0] += 1
        return self.script[self.cursor[0] - 1]

    def bernoulli(self, p, where, u):
        p, where = jnp.broadcast_to(p, u.shape), jnp.broadcast_to(where, u.shape)
        flat = jnp.stack([self._next() for _ in range(p.size)]).astype(p.dtype).reshape(p.shape)
        self.once.append(jnp.all(((where > 0) & (p > 0)) | (flat == 0)))
        return flat * where

    def categorical(self, p, u, exponentials):
        return jax.nn.one_hot(self._next(), p.shape[0], dtype=p.dtype)


def enumerated_gradient(model, steps, options, loss):
    """d E[loss] / d parameters: the sum over all outcomes of loss times probability, differentiated."""
    from calibrant._randomness import Randomness, as_seed

    flat, unravel = ravel_pytree(model.Params())

    def one(v, script):
        params, rule, log_prob = unravel(v), Scripted(script, [0], []), 0.0

        def rng(phase, t):
            return Randomness.of_step(as_seed(0), phase, t, rule, recorder=cal.LogProbability())

        state = model.init(params, rng("init", 0))
        outputs = []
        for t in range(1, steps + 1):
            r = rng("step", t)
            state = model.step(params, state, None, r)
            log_prob = log_prob + r.notes
            outputs.append(model.observe(params, state, None, rng("observe", t)))
        probability = jnp.exp(log_prob) * jnp.prod(jnp.array([jnp.asarray(x, float) for x in rule.once]))
        return loss(jnp.stack(outputs)) * probability, probability

    scripts = jnp.array(list(itertools.product(*options)))

    def expected(v):
        terms, probabilities = jax.vmap(one, (None, 0))(v, scripts)
        return jnp.sum(terms), jnp.sum(probabilities)

    (value, total), gradient = jax.jit(jax.value_and_grad(expected, has_aux=True))(flat)
    return value, total, gradient


def nonlinear(outputs):
    return jnp.mean(outputs**2) - 0.7 * jnp.sin(outputs[-1]) + 0.2 * outputs[0]


BINARY, TERNARY = (0, 1), (0, 1, 2)
#: name -> (model, steps, options of each draw). Draws of agents that do not decide are scripted too.
CASES = {
    "flips-2-agents": (toys.Flips(2), 3, [BINARY] * 6),
    "choice": (toys.Choice(), 4, [TERNARY] * 4),
    "trade": (toys.Trade(), 3, [BINARY, TERNARY] * 3),
    "contagion": (toys.Contagion(), 2, [BINARY] * 12),
    "random-walk": (cal.models.RandomWalk(1), 5, [BINARY] * 5),
}


@functools.cache
def problem_of(name):
    model, steps, _ = CASES[name]

    def loss(simulations, data, params):
        return jnp.mean(jax.vmap(nonlinear)(simulations.reshape(simulations.shape[0], steps)))

    data = jnp.zeros((steps,)) if not isinstance(model, cal.models.RandomWalk) else jnp.zeros((steps, 1))
    return cal.Problem(model, data, cal.losses.CustomLoss(loss, per_simulation=True), steps=steps)


class Squares(cal.losses.MeanSquaredError):
    """A nonlinear loss that is a sum over times."""

    def each(self, x, y, params):
        return x**2 - 0.7 * jnp.sin(x) + 0.1


def estimates(problem, estimator, n, replicates, rows=None):
    """Gradients at the default parameters, one row a parameter value; `rows` of them at a time."""
    flat, unravel = ravel_pytree(problem.params)
    names = list(problem.parameter_names)
    estimator = estimator.prepare(problem, jax.random.key(0))
    rows = n if rows is None else rows

    def some(seeds):
        params = unravel(flat)
        values = {k: jnp.broadcast_to(getattr(params, k), (rows, *getattr(params, k).shape)) for k in names}

        def total(values):
            return jnp.sum(cal.expect(problem, values, seeds=seeds, estimator=estimator).losses)

        gradient = jax.grad(total)(values)
        return jnp.concatenate([gradient[k].reshape(rows, -1) for k in names], axis=1)

    seeds = cal.seeds(11, (n // rows, rows, replicates))
    return np.asarray(jax.jit(lambda s: jax.lax.map(some, s))(seeds))


def estimate(problem, estimator, n, replicates=2):
    """Mean and standard error."""
    pooled = getattr(estimator, "pool", False)
    each = estimates(problem, estimator, n, replicates, rows=40 if pooled else None)
    # Rows that learned from one another are one observation.
    each = each.mean(axis=1) if pooled else each[0]
    return each.mean(0), each.std(0, ddof=1) / np.sqrt(len(each))


@functools.cache
def truth_of(name):
    model, steps, options = CASES[name]
    _, total, gradient = enumerated_gradient(model, steps, options, nonlinear)
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)
    return np.asarray(gradient)


@functools.cache
def truth_of_sums(name):
    """The truth for a loss that is a sum over times."""
    return estimates(with_a_sum_over_times(name), cal.estimators.Enumeration(), 1, 1)[0, 0]


def with_a_sum_over_times(name):
    problem = problem_of(name)
    return cal.Problem(problem.model, problem.data, Squares(), steps=problem.steps)


N = 30_000
#: Simulations, so many that standard errors are below a fiftieth of the largest derivative.
ENOUGH = dict.fromkeys(CASES, N) | {"contagion": N // 2}
#: The long run has four times as many, which sees half the bias.
MANY = pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["enough", "many"])
UNBIASED = [name for name, (estimator, _) in ESTIMATORS.items() if estimator.unbiased]


@MANY
@pytest.mark.parametrize(
    ("estimator", "name"),
    product(
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


@MANY
@pytest.mark.parametrize("name", product(["choice", "trade"], soon=lambda name: name == "choice"))
def test_a_network_that_has_learnt_leaves_the_mean_alone(name, many):
    """It begins at zero, where RELAX is REBAR."""
    relax = ESTIMATORS["relax"][0].prepare(problem_of(name), jax.random.key(1))
    weight = jax.random.normal(jax.random.key(2), relax.control.network.layers[-1].weight.shape)
    relax = eqx.tree_at(lambda e: e.control.network.layers[-1].weight, relax, weight)

    class Learnt(type(relax)):
        def prepare(self, problem, key):
            return relax

    mean, error = estimate(problem_of(name), Learnt(), 4 * N if many else N)
    truth = truth_of(name)
    assert error.max() <= 0.02 * np.abs(truth).max()
    assert np.all(np.abs(mean - truth) <= 4 * error)


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


@MANY
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("name", ["score-function-state", "muprop", "controlled-score"])
def test_a_draw_that_follows_from_another_of_its_step_is_not_held_for_known(name, inner, many):
    """The law is the same in an inner loop."""

    def problem(inner):
        loss = cal.losses.CustomLoss(lambda x, y, p: jnp.mean(x**2), per_simulation=True)
        return cal.Problem(toys.Chain(inner), jnp.zeros(3), loss, steps=3)

    truth = estimates(problem(False), cal.estimators.Enumeration(), 1, 1)[0, 0]
    estimator, replicates = ESTIMATORS[name]
    each = estimates(problem(inner), estimator, 20_000 if many else 5_000, replicates)[0]
    error = each.std(0, ddof=1) / np.sqrt(len(each))
    assert error.max() <= 0.02 * np.abs(truth).max()
    assert np.all(np.abs(each.mean(0) - truth) <= 4 * error)


#: name -> (model, parameters at which it is chaotic, steps)
CHAOTIC = {
    "market": (
        cal.models.ThresholdMarket(50),
        {"threshold": 0.008, "spread": 0.675, "news": 0.98, "depth": 0.165},
        60,
    ),
    "brock-hommes": (cal.models.BrockHommes(50), {"g2": 0.956, "b2": 0.598, "g3": 0.98, "b3": -0.7455}, 97),
}
#: name -> (estimator, replicates, how many times as long as plain ones its gradients may be)
CONTROLLED = {"muprop": (cal.estimators.MuProp(), 8, 3), "controlled-score": (cal.estimators.ControlledScore(), 32, 20)}


@pytest.mark.parametrize(
    ("estimator", "model"),
    product(CONTROLLED, CHAOTIC, soon=lambda *c: c in (("muprop", "brock-hommes"), ("controlled-score", "market"))),
)
def test_chaos_does_not_make_controlled_gradients_longer_than_plain_ones(estimator, model):
    """Along the paths of a chaotic model adjoints reach 10^14 of what the loss can change by, and replicates part."""
    estimator, replicates, times = CONTROLLED[estimator]
    model, at, steps = CHAOTIC[model]
    loss = cal.losses.CustomLoss(lambda x, y, p: jnp.mean(jnp.abs(x)), per_simulation=True)
    problem = cal.Problem(model, jnp.zeros(steps), loss, params=model.default_params.replace(at), steps=steps)
    values = {name: jnp.full(32, x) for name, x in at.items()}

    def sizes(estimator):
        def total(values):
            return jnp.sum(
                cal.expect(problem, values, seeds=cal.seeds(0, (32, replicates)), estimator=estimator).losses
            )

        return np.abs(np.stack(list(jax.jit(jax.grad(total))(values).values())))

    plain, controlled = sizes(cal.estimators.ScoreFunction()), sizes(estimator)
    assert np.all(np.median(controlled, axis=1) <= times * np.median(plain, axis=1))
    assert np.all(controlled.max(1) <= 5 * times * plain.max(1))


@pytest.mark.slow
def test_branching_finds_the_one_draw_among_thousands_that_a_parameter_moves():
    """The one agent whose chance to be infected at first the parameter decides, in an epidemic of 8,000 draws."""
    model = cal.models.SIR(cal.networks.random_groups(400, 400, contiguous=True))
    loss = cal.losses.CustomLoss(
        lambda x, y, p: jnp.mean(x["infected"][:, -1] + x["recovered"][:, -1]), per_simulation=True
    )
    data = {"infected": np.zeros(10), "recovered": np.zeros(10)}
    problem = cal.Problem(model, data, loss, params=model.Params(initial=8.5), steps=10)
    place = list(problem.parameter_names).index("initial")

    def derivative(estimator):
        each = estimates(problem, estimator, 400, 1, rows=50)[..., place].reshape(-1)
        return each, each.mean(), each.std(ddof=1) / np.sqrt(each.size)

    each, mean, error = derivative(cal.estimators.Branching(16))
    _, reference, its_error = derivative(cal.estimators.FiniteDifferences(0.2))
    assert np.mean(each != 0) > 0.5
    assert abs(mean - reference) <= 4 * np.hypot(error, its_error)
    assert error <= 0.2 * abs(reference)


@pytest.mark.slow
def test_controls_take_the_noise_of_a_population_away():
    """In a well-mixed population of 400: less noise than the score function and its state baseline, at equal cost."""
    model = cal.models.SIR(cal.networks.random_groups(400, 400, contiguous=True))
    loss = cal.losses.CustomLoss(lambda x, y, p: jnp.mean(x["recovered"][:, -1]) / 400, per_simulation=True)
    data = {"infected": np.zeros(12), "recovered": np.zeros(12)}
    problem = cal.Problem(model, data, loss, params=model.Params(initial=20), steps=12)
    noise = {}
    for name, estimator in {
        "score": cal.estimators.ScoreFunction(),
        "state": cal.estimators.ScoreFunction(cal.estimators.StateRegression()),
        "controlled": cal.estimators.ControlledScore(),
    }.items():
        noise[name] = estimates(problem, estimator, 30, 64)[0][:, :2].std(0)
    assert np.all(noise["state"] < noise["score"]), noise
    assert np.all(noise["controlled"] < 0.5 * noise["score"]), noise


@pytest.mark.parametrize("kind", [cal.estimators.REBAR, cal.estimators.RELAX])
def test_a_relaxed_control_learns_to_take_noise_away(kind):
    """From a bad temperature and scale, by the derivative of the second moment of its own gradients."""
    problem = problem_of("contagion")
    values = {name: jnp.full(200, getattr(problem.params, name)) for name in problem.parameter_names}
    start = kind(3.0, 0.1, learning_rate=0.1).prepare(problem, jax.random.key(0))

    def gradients(estimator, words):
        def total(values):
            out = cal.expect(problem, values, seeds=words, estimator=estimator)
            return jnp.sum(out.losses), out

        g, out = jax.grad(total, has_aux=True)(values)
        return out.losses, out.finite, jnp.stack([g["beta"], g["gamma"]], axis=1)

    @eqx.filter_jit
    def trained(estimator, words):
        def body(carry, words):
            estimator, optimiser = eqx.combine(carry, static)
            _, estimator, optimiser = estimator.trained(optimiser, lambda e: gradients(e, words))
            return eqx.filter((estimator, optimiser), eqx.is_array), None

        carry, static = eqx.partition((estimator, estimator.init_training()), eqx.is_array)
        return jax.lax.scan(body, carry, words)[0][0]

    moved = eqx.combine(trained(start, cal.seeds(1, (60, 200, 2))), start)
    fresh = cal.seeds(2, (200, 2))
    before, after = (jnp.sum(jnp.var(gradients(e, fresh)[2], axis=0)) for e in (start, moved))
    assert after < 0.6 * before
    assert np.exp(moved.control.log_temperature) < 2.5


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
        if estimator.runs(problem, 2) < 1000:
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
