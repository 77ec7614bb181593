"""Control variates: the mean stays, whatever follows from what, and the noise goes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from covering import product
from enumerated import N, estimate, estimates, problem_of, truth_of, with_enough_or_many
from registry import ESTIMATORS

import calibrant as cal

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(("name", "many"), with_enough_or_many(["choice", "trade"], soon=lambda name: name == "choice"))
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


@pytest.mark.parametrize(
    ("name", "inner", "many"),
    with_enough_or_many(
        ["score-function-state", "muprop", "controlled-score"],
        ["in the step", "in an inner loop"],
        soon=lambda name, inner: (name == "muprop") != (inner == "in an inner loop"),
    ),
)
def test_a_draw_that_follows_from_another_of_its_step_is_not_held_for_known(name, inner, many):
    """The law is the same in an inner loop."""

    def problem(inner):
        loss = cal.losses.CustomLoss(lambda x, y, p: jnp.mean(x**2), per_simulation=True)
        return cal.Problem(toys.Chain(inner), jnp.zeros(3), loss, steps=3)

    truth = estimates(problem(False), cal.estimators.Enumeration(), 1, 1)[0, 0]
    estimator, replicates = ESTIMATORS[name]
    each = estimates(problem(inner == "in an inner loop"), estimator, 20_000 if many else 5_000, replicates)[0]
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
