"""A simulator in PyTorch with its own gradients."""

import datetime as dt
import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import calibrant as cal
from calibrant._config import ConfigError, parse_config

torch = pytest.importorskip("torch")

PARAMETERS = {
    "mu": cal.parameter(0.3, prior=dist.Normal(0.0, 1.0)),
    "rates": cal.parameter([0.5, 0.2], prior=dist.Normal(jnp.zeros(2), 1.0).to_event(1)),
}
DATA = {"x": np.array([0.5, 0.9, 1.1, 0.7]), "y": np.array([0.1])}


def walk(params, seed):
    steps = params["mu"] + torch.randn(4, dtype=params["mu"].dtype) * torch.exp(params["rates"][0])
    return {"x": torch.cumsum(steps, 0), "y": torch.sin(params["rates"]).prod(), "other": torch.ones(3)}


def model_of(run, **kwargs):
    return cal.TorchModel(run, **{"parameters": PARAMETERS, "outputs": {"x": 4, "y": 1}, **kwargs})


def problem_of(model):
    return cal.Problem(model, DATA, cal.losses.Streams(dict.fromkeys(DATA, cal.losses.MeanSquaredError())))


def by_torch(mu, rates, seeds):
    """Losses and gradients of `walk`, without Calibrant."""
    losses, gradients = [], []
    for m, r, seed in zip(mu, rates, seeds, strict=True):
        torch.manual_seed(seed)
        tensors = {"mu": torch.tensor(float(m), dtype=torch.float64), "rates": torch.tensor(np.asarray(r))}
        for x in tensors.values():
            x.requires_grad_()
        out = walk(tensors, seed)
        loss = sum(((out[k].reshape(-1) - torch.tensor(DATA[k])) ** 2).mean() for k in DATA)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(np.concatenate([[float(tensors["mu"].grad)], tensors["rates"].grad.numpy()]))
    return np.array(losses), np.stack(gradients)


def test_gradients_are_those_of_pytorch(x64):
    seen = []

    def noted(params, seed):
        seen.append(seed)
        return walk(params, seed)

    problem = problem_of(model_of(noted))
    mu, rates = jnp.asarray([0.1, -0.4, 0.7]), jnp.asarray([[0.1, 0.2], [0.3, -0.4], [-0.5, 0.6]])
    before = torch.random.get_rng_state()

    def total(mu, rates):
        out = cal.expect(problem, {"mu": mu, "rates": rates}, seeds=cal.seeds(3, (3, 1)))
        return jnp.sum(out.losses), out

    (_, out), (d_mu, d_rates) = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(mu, rates)
    assert len(set(seen)) == 3
    assert seen[:3] == seen[3:6]  # a gradient makes the simulation again
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.is_grad_enabled()
    losses, gradients = by_torch(mu, rates, seen[:3])
    np.testing.assert_allclose(out.losses, losses, rtol=1e-12)
    np.testing.assert_allclose(d_mu, gradients[:, 0], rtol=1e-10)
    np.testing.assert_allclose(d_rates, gradients[:, 1:], rtol=1e-10)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("rebind", id="a parameter by another tensor"),
        pytest.param("pop", id="a parameter by taking it out"),
        pytest.param("add", id="parameters by one more"),
        pytest.param("in place", id="a tensor in place"),
    ],
)
def test_a_simulator_may_change_what_it_is_given(how, x64):
    def run(params, seed):
        if how == "rebind":
            params["mu"] = params["mu"].exp()
        elif how == "pop":
            return {"x": params.pop("mu").exp().expand(4), "y": 0.0}
        elif how == "add":
            params["other"] = params["mu"].exp()
            return {"x": params["other"].expand(4), "y": 0.0}
        else:
            params["mu"] += 1
            params["mu"].exp_()
            return {"x": params["mu"].expand(4) / np.e, "y": 0.0}
        return {"x": params["mu"].expand(4), "y": 0.0}

    model = model_of(run)
    slope = jax.grad(lambda mu: cal.simulate(model, model.Params(mu=mu), seed=0).outputs["x"][0])(0.7)
    np.testing.assert_allclose(slope, np.exp(0.7), rtol=1e-12)
    assert (model.n_failed, model.why_failed) == (0, "")


def test_equal_seeds_give_equal_runs_in_many_threads():
    model = cal.TorchModel(lambda p, seed: p["a"] * torch.rand(3), parameters={"a": 2.0}, outputs=3)

    def run(seed):
        return np.asarray(cal.simulate(model, model.default_params, seed=seed).outputs)

    alone = [run(i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(pool.map(run, range(8)), alone, strict=True):
            np.testing.assert_array_equal(a, b)


def test_equal_seeds_give_equal_runs_of_one_array():
    model = cal.TorchModel(lambda p, seed: p["a"] * torch.rand(3), parameters={"a": 2.0}, outputs=3)
    params = model.default_params
    one, two = (cal.simulate(model, params, seed=1).outputs for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, cal.simulate(model, params, seed=2).outputs)
    assert one.dtype == jnp.float32
    slope = jax.jacrev(lambda a: cal.simulate(model, model.Params(a=a), seed=1).outputs)(2.0)
    np.testing.assert_allclose(slope, one / 2, rtol=1e-6)
    assert cal.simulate(model, params, seed=1, steps=2).outputs.shape == (2,)


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(cal.estimators.Pathwise(), id="pathwise"),
        pytest.param(cal.estimators.FiniteDifferences(), id="finite differences", marks=pytest.mark.slow),
    ],
)
def test_a_simulator_in_pytorch_has_its_known_posterior(estimator):
    """A normal mean: ten data of standard deviation 1, prior N(0, 1)."""
    data = {"x": np.linspace(0.2, 1.4, 10)}
    model = cal.TorchModel(
        lambda p, seed: {"x": p["mu"].expand(10)},
        parameters={"mu": cal.parameter(0.0, prior=dist.Normal(0.0, 1.0))},
        outputs={"x": 10},
    )
    problem = cal.Problem(model, data, cal.losses.GaussianLogLikelihood(1.0))
    method = cal.GVI(
        estimator=estimator,
        simulations=6,
        max_updates=300,
        learning_rate=3e-2,
        final_learning_rate=1e-3,
        family=cal.posteriors.FullRankGaussian(),
    )
    calibration = cal.calibrate(problem, method=method, progress=False)
    draws = np.asarray(calibration.sample(0, 20_000)["mu"])
    sd = 11**-0.5
    assert abs(draws.mean() - data["x"].sum() / 11) < 0.1 * sd
    assert abs(draws.std() / sd - 1) < 0.07
    if isinstance(estimator, cal.estimators.Pathwise):
        found = cal.checks.identifiability(problem, calibration.posterior, simulations=5, jacobians=2)
        np.testing.assert_allclose(found.contraction, 1 - sd**2, atol=0.02)
        health = cal.diagnostics.gradients(problem, calibration.prior, method, points=2, repeats=4)
        ratio, _ = health.ratios(health.configured)
        np.testing.assert_allclose(ratio, 1, rtol=1e-3)
        assert cal.diagnostics.gradients_figure(health).axes


OUTSIDE = r"TorchModel is run outside of JAX, where {} cannot see its steps and draws; leave it out"


@pytest.mark.parametrize(
    ("method", "what"),
    [
        pytest.param(cal.Point(mode=cal.HybridMode()), "HybridMode", id="Point in hybrid mode"),
        pytest.param(cal.NUTS(mode=cal.HybridMode()), "HybridMode", id="NUTS in hybrid mode"),
        pytest.param(cal.MALA(mode=cal.HybridMode()), "HybridMode", id="MALA in hybrid mode"),
        pytest.param(cal.GVI(mode=cal.HybridMode()), "HybridMode", id="GVI in hybrid mode"),
        pytest.param(cal.GVI(mode=cal.AutoMode()), "AutoMode", id="a choice of modes"),
        pytest.param(cal.GVI(horizon=cal.SlidingHorizon(2)), "SlidingHorizon", id="a sliding horizon"),
        pytest.param(
            cal.GVI(estimator=cal.estimators.ScoreFunction(), replicates=2), "ScoreFunction", id="a score function"
        ),
        pytest.param(
            cal.GVI(estimator=cal.estimators.Pathwise(cal.GumbelSoftmax(0.5))), "GumbelSoftmax", id="relaxed draws"
        ),
    ],
)
def test_a_method_that_sees_steps_or_draws_is_refused_for_pytorch_before_it_runs(method, what):
    model = model_of(walk)
    problem = problem_of(model)
    with pytest.raises(ValueError, match=OUTSIDE.format(what)):
        method.check(problem, cal.Prior.of(problem))
    assert model.n_runs == 0


@pytest.mark.parametrize(
    ("how", "what"),
    [
        pytest.param({"horizon": cal.SlidingHorizon(2)}, "SlidingHorizon", id="a sliding horizon"),
        pytest.param({"rule": cal.GumbelSoftmax(0.5)}, "GumbelSoftmax", id="relaxed draws"),
        pytest.param({"mode": cal.HybridMode()}, "HybridMode", id="hybrid mode"),
    ],
)
def test_a_simulation_in_pytorch_under_what_sees_steps_or_draws_is_refused(how, what):
    model = model_of(walk)
    with pytest.raises(ValueError, match=OUTSIDE.format(what)):
        cal.simulate(model, model.default_params, seed=0, **how)
    assert model.n_runs == 0


def _raise(params, seed):
    raise RuntimeError("no\nsuch luck")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        pytest.param(_raise, "the first: RuntimeError: no such luck", id="an error"),
        pytest.param(
            lambda p, seed: {"x": torch.ones(3), "y": torch.ones(1)},
            r"output 'x' has shape \(3,\)",
            id="three numbers for four",
        ),
        pytest.param(
            lambda p, seed: {"x": torch.ones(4) / 0, "y": torch.ones(1)},
            "output 'x' is not finite",
            id="a number that is not finite",
        ),
        pytest.param(lambda p, seed: {"x": torch.ones(4)}, "output 'y' is missing", id="an output less"),
        pytest.param(lambda p, seed: sys.exit(3), "SystemExit: 3", id="an exit"),
        pytest.param(
            lambda p, seed: {"x": 1e300 * torch.ones(4).double(), "y": 1.0},
            "output 'x' is too large for float32",
            id="a number too large",
        ),
        pytest.param(
            lambda p, seed: torch.ones(4), "returned a ndarray, not a mapping of x, y", id="an array for a mapping"
        ),
        pytest.param(lambda p, seed: {"x": "no", "y": 1.0}, "output 'x' is no array of numbers", id="a word"),
    ],
)
def test_a_run_in_pytorch_that_goes_wrong_is_masked_and_says_why(run, message, caplog, tmp_path):
    model = model_of(run, keep_errors_in=tmp_path)
    with caplog.at_level(logging.WARNING):
        out = cal.simulate(model, model.default_params, seed=0).outputs
    assert np.isnan(out["x"]).all()
    assert (model.n_runs, model.n_failed) == (1, 1)
    assert len(list(tmp_path.iterdir())) == 1
    assert len(caplog.records) == 1
    assert re.search(message, model.why_failed)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        pytest.param(
            lambda p, seed: {"x": p["mu"].detach().expand(4), "y": 1.0},
            "no output depends on a parameter by",
            id="of nothing",
        ),
        pytest.param(
            lambda p, seed: {"x": torch.sqrt(p["mu"] - p["mu"].detach()).expand(4), "y": 1.0},
            "gradient in 'mu' is not",
            id="that is not finite",
        ),
        pytest.param(
            lambda p, seed: {"x": p["mu"].expand(4).numpy(), "y": 1.0},
            "RuntimeError: Can't call numpy",
            id="through NumPy",
        ),
    ],
)
def test_a_gradient_of_pytorch_that_goes_wrong_is_masked_and_says_why(run, message):
    model = model_of(run)
    problem = problem_of(model)

    def total(mu):
        return jnp.sum(cal.expect(problem, {"mu": mu}, seeds=cal.seeds(0, (2, 1))).losses)

    assert np.isnan(jax.grad(total)(jnp.ones(2))).all()
    assert message in model.why_failed
    assert model.why_failed.startswith("2 gradients failed; the first: ")
    assert (model.n_runs, model.n_failed) == (2, 0)


def test_a_run_that_fails_is_counted_once_whatever_the_loss():
    """The derivative of `abs` is finite where the difference is not."""
    model = model_of(_raise)
    problem = cal.Problem(
        model, DATA, lambda simulations, data, params: jnp.mean(jnp.abs(simulations["x"] - data["x"]))
    )

    def total(mu):
        return jnp.sum(cal.expect(problem, {"mu": mu}, seeds=cal.seeds(0, (2, 1))).losses)

    assert np.isnan(jax.grad(total)(jnp.ones(2))).all()
    assert (model.n_runs, model.n_failed) == (2, 2)
    assert "gradients" not in model.why_failed


def test_what_failed_is_left_out_of_a_calibration():
    def run(params, seed):
        if params["mu"] > 1:
            raise RuntimeError("too large")
        return walk(params, seed)

    model = model_of(run)
    method = cal.GVI(
        max_updates=6, evaluate_every=3, evaluation_simulations=20, max_failed_fraction=0.9,
        family=cal.posteriors.FullRankGaussian(),
    )  # fmt: skip
    calibration = cal.calibrate(problem_of(model), method=method, progress=False)
    assert 0 < calibration.n_failed < calibration.n_simulations
    assert np.isfinite(calibration.updates["gradient_norm"]).all()
    assert 0 < model.n_failed < model.n_runs
    assert "RuntimeError: too large" in model.why_failed


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        pytest.param(3, {}, r"takes a function run\(params, seed\), got 3", id="no function"),
        pytest.param(walk, {"device": "meta"}, "no device 'meta' here", id="a device without memory"),
        pytest.param(walk, {"device": "cudo"}, "no device 'cudo' here", id="no such device"),
        pytest.param(
            walk, {"dates": [dt.date(2020, 1, 1)]}, "4 output times and 1 dates", id="fewer dates than output times"
        ),
    ],
)
def test_a_simulator_in_pytorch_that_cannot_run_is_refused_when_it_is_made(run, options, message):
    with pytest.raises(ValueError, match=message):
        model_of(run, **options)


def test_without_pytorch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pip install 'calibrant\[torch\]'"):
        model_of(walk)


CONFIG = """
[model]
name = "torch"
[model.options]
function = "grow:run"
outputs = { x = 4 }
[model.options.parameters]
mu = 0.3
[parameters.mu]
prior = { distribution = "Normal", loc = 0.0, scale = 1.0 }
[data]
synthetic = { seed = 1 }
[loss]
name = "mean-squared-error"
[method]
max_updates = 2
"""


@pytest.fixture
def grow(here):
    """A directory with a simulator."""
    (here / "grow.py").write_text("def run(params, seed):\n    return {'x': params['mu'].exp().expand(4)}\n")
    return here


def test_a_configuration_names_a_simulator_in_pytorch(grow):
    problem, prior, method = parse_config(CONFIG, "config").build(grow)
    assert isinstance(problem.model, cal.TorchModel)
    np.testing.assert_allclose(problem.data["x"], np.exp(0.3), rtol=1e-6)
    method.check(problem, prior)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param('"grow:run"', '"grow:ran"', "no attribute 'ran'", id="no such function"),
        pytest.param("mu = 0.3", "mu = 0.3\n[method.mode]\nsegments = 3", "method", id="a mode with segments"),
        pytest.param("outputs =", "workers = 2\noutputs =", "workers", id="workers"),
        pytest.param("max_updates = 2", 'max_updates = 2\nmode = "hybrid"', "HybridMode", id="hybrid mode"),
    ],
)
def test_a_configuration_of_a_simulator_in_pytorch_that_cannot_run_is_refused(old, new, message, grow):
    with pytest.raises(ConfigError, match=message):
        parse_config(CONFIG.replace(old, new), "config").build(grow)
