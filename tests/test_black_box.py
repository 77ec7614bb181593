"""Other simulators as models."""

import datetime as dt
import json
import logging
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from boxes import DATA, black_box, command, failing, losses, noisy

import calibrant as cal
from calibrant.black_box import Joblib

# Runs ---------------------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_runs_whatever_the_workers():
    mu = np.linspace(-1, 1, 6)
    here = losses(black_box(noisy(1.0)), mu, 2)
    for executor in (Joblib(2), Joblib(3, "threading")):
        np.testing.assert_array_equal(losses(black_box(noisy(1.0), executor=executor), mu, 2), here)
    assert len(np.unique(losses(black_box(noisy(1.0)), np.zeros(6)))) == 6


def test_a_run_is_given_numbers_and_a_seed_and_may_return_one_array():
    seen = []

    def run(params, seed):
        seen.append((params, seed))
        return np.outer(np.arange(3), params["rates"])

    model = black_box(run, parameters={"rates": [1.0, 2.0], "flat": 0.5}, outputs=(3, 2))
    out = cal.simulate(model, model.Params(flat=0.25), seed=1).outputs
    np.testing.assert_array_equal(out, [[0, 0], [1, 2], [2, 4]])
    ((params, seed),) = seen
    assert isinstance(params["flat"], float)
    assert params["flat"] == 0.25
    assert isinstance(params["rates"], np.ndarray)
    assert 0 <= seed < 2**31
    cal.simulate(model, model.Params(flat=0.75), seed=1)
    assert seen[1][1] == seed  # common random numbers


def test_a_black_box_in_double_precision_keeps_its_digits(x64):
    model = black_box(lambda params, seed: {"x": [params["mu"]] * 4})
    assert cal.simulate(model, model.Params(0.1), seed=0).outputs["x"][0] == 0.1


def test_fewer_steps_are_the_first_of_a_run_and_dates_are_those_of_its_outputs():
    days = [dt.date(2020, 3, 1) + dt.timedelta(days=i) for i in range(4)]
    outputs = {"x": 4, "total": (1,)}
    model = black_box(lambda p, s: {"x": [1, 2, 3, 4], "total": 10}, outputs=outputs, dates=days)
    assert model.dates == tuple(days)
    out = cal.simulate(model, model.default_params, seed=0, steps=2).outputs
    assert (out["x"].tolist(), out["total"].tolist()) == ([1, 2], [10])


def test_more_steps_than_a_run_has_outputs_are_refused():
    model = black_box(noisy(1.0))
    with pytest.raises(ValueError, match="outputs at 4 times, and 5 steps"):
        cal.simulate(model, model.default_params, seed=0, steps=5)


# Failures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        pytest.param(
            {"x": [1, 2, 3]}, r"output 'x' has shape \(3,\), and \(4,\) was declared", id="three numbers for four"
        ),
        pytest.param({"y": [1] * 4}, "output 'x' is missing; the run returned y", id="another output"),
        pytest.param({"x": [1, 2, 3, np.nan]}, "output 'x' is not finite", id="a number that is not finite"),
        pytest.param({"x": ["a"] * 4}, "output 'x' is no array of numbers", id="letters"),
        pytest.param([1] * 4, "returned a list, not a mapping of x", id="a list for a mapping"),
    ],
)
def test_a_run_that_returns_what_was_not_declared_fails(returned, message, caplog):
    model = black_box(lambda params, seed: returned)
    out = cal.simulate(model, model.default_params, seed=0).outputs
    assert np.all(np.isnan(out["x"]))
    (failure,) = model.failures
    assert re.search(message, failure.message)
    assert failure.message in caplog.text


def test_failures_are_masked_counted_and_kept(tmp_path, caplog):
    def fail():
        raise ValueError("mu is\ntoo large")

    model = black_box(failing(fail), keep_errors_in=tmp_path / "errors", most_kept=3)
    problem = cal.Problem(model, DATA, cal.losses.GaussianLogLikelihood(1.0))
    method = cal.GVI(
        estimator=cal.FlowScore(), simulations=8, max_updates=20, kl_samples=50, evaluate_every=10,
        evaluation_simulations=20, family=cal.posteriors.FullRankGaussian(),
    )  # fmt: skip
    result = cal.calibrate(problem, method=method, seed=1, progress=False)
    assert np.all(np.isfinite(result.updates["loss"]))
    assert 0 < result.n_failed < model.n_failed < model.n_runs == 20 * 8 + 4 * 20
    assert np.all(result.failures["mu"] > 1)
    files = sorted((tmp_path / "errors").iterdir())
    assert sorted(f.file for f in model.failures) == files
    assert len(files) == 3
    first = model.failures[0]
    text = first.file.read_text()
    given = json.loads(text.splitlines()[0])
    assert given == {"parameters": first.params, "seed": first.seed}
    assert given["parameters"]["mu"] > 1
    assert "ValueError: mu is too large" in text
    assert "in fail" in text  # the traceback
    assert caplog.record_tuples[0][:2] == ("calibrant", logging.WARNING)
    assert len(caplog.records) == 1


def test_if_all_fail_at_the_start_the_calibration_ends_and_says_why(tmp_path):
    model = black_box(lambda params, seed: 1 / 0, keep_errors_in=tmp_path)
    problem = cal.Problem(model, DATA, cal.losses.GaussianLogLikelihood(1.0))
    method = cal.GVI(estimator=cal.FlowScore(), kl_samples=50, evaluation_simulations=10)
    with pytest.raises(cal.CalibrationError, match="ZeroDivisionError: division by zero") as error:
        cal.calibrate(problem, method=method, progress=False)
    assert error.value.calibration.result is cal.Result.NON_FINITE
    assert f"see {model.failures[0].file}" in str(error.value)
    assert model.n_runs == 20  # no update was made


def test_a_run_that_takes_too_long_is_ended():
    def sleep():
        import contextlib
        import time

        while True:
            with contextlib.suppress(Exception):  # which does not save it
                time.sleep(60)

    model = black_box(failing(sleep), executor=Joblib(2), timeout=0.3)
    start = time.perf_counter()
    np.testing.assert_array_equal(np.isnan(losses(model, [0.0, 2.0, 0.5])), [False, True, False])
    assert time.perf_counter() - start < 50
    assert model.failures[0].message == "the run took more than 0.3 s"
    assert "time.sleep(60)" in model.failures[0].details


def test_a_worker_that_dies_takes_its_own_run_with_it():
    def die():
        import os

        os._exit(1)

    model = black_box(failing(die), executor=Joblib(2))
    wanted = losses(black_box(failing(lambda: None)), [0.0, 2.0, 0.5, 0.7, -1.0])
    wanted[1] = np.nan
    np.testing.assert_array_equal(losses(model, [0.0, 2.0, 0.5, 0.7, -1.0]), wanted)
    assert "the worker process ended" in model.failures[0].message


def test_a_failed_run_is_made_again_with_the_same_seed(tmp_path):
    def run(params, seed):
        with open(tmp_path / "tries", "a+") as file:
            file.write(f"{seed}\n")
            file.seek(0)
            if len(file.readlines()) < 3:
                raise OSError("busy")
        return {"x": [params["mu"]] * 4}

    for retries, failed in ((1, 1), (2, 0)):
        (tmp_path / "tries").unlink(missing_ok=True)
        model = black_box(run, retries=retries)
        cal.simulate(model, model.default_params, seed=0)
        tries = (tmp_path / "tries").read_text().split()
        assert (len(tries), len(set(tries)), model.n_failed) == (retries + 1, 1, failed)


# What is refused --------------------------------------------------------------------------------------------------


def calibrated_by(estimator):
    return lambda problem: cal.calibrate(problem, method=cal.GVI(estimator=estimator), progress=False)


def derivative_by(estimator):
    def total(mu, problem):
        return jnp.sum(cal.expect(problem, {"mu": mu}, seeds=cal.seeds(0, (2, 2)), estimator=estimator).losses)

    return lambda problem: jax.grad(total)(jnp.zeros(2), problem)


def derivative_of_outputs(problem):
    def total(params):
        return jnp.sum(cal.simulate(problem.model, params, seed=0).outputs["x"])

    return jax.grad(total)(problem.model.default_params)


def planned(problem):
    cal.GVI(estimator=cal.FlowScore(), mode=cal.AutoMode()).check(problem, cal.Prior.of(problem))


def looked_at(problem):
    cal.diagnostics.gradients(problem, cal.Prior.of(problem), cal.GVI(estimator=cal.FlowScore()))


NO_DERIVATIVE = r"BlackBox has no derivative; use estimator = FlowScore\(\) or FiniteDifferences\(\)"
PATHWISE, SCORE = cal.estimators.Pathwise(), cal.estimators.ScoreFunction()


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        pytest.param(calibrated_by(PATHWISE), NO_DERIVATIVE, id="a calibration by pathwise gradients"),
        pytest.param(calibrated_by(SCORE), NO_DERIVATIVE, id="a calibration by the score function"),
        pytest.param(derivative_by(PATHWISE), NO_DERIVATIVE, id="the pathwise gradient of a loss"),
        pytest.param(derivative_by(SCORE), NO_DERIVATIVE, id="the score-function gradient of a loss"),
        pytest.param(derivative_of_outputs, NO_DERIVATIVE, id="the derivative of outputs"),
        pytest.param(
            planned, "BlackBox is run outside of JAX, where AutoMode cannot", id="a choice of modes of differentiation"
        ),
        pytest.param(looked_at, "no gradients to look at", id="a look at its gradients"),
    ],
)
def test_what_needs_a_derivative_of_a_black_box_is_refused_before_it_runs(attempt, message):
    model = black_box(noisy(1.0))
    with pytest.raises(ValueError, match=message):
        attempt(cal.Problem(model, DATA, cal.losses.MeanSquaredError()))
    assert model.n_runs == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: black_box(noisy(1), outputs={"x": ()}),
            r"shape of output 'x' is whole numbers >= 1.*got \(\)",
            id="an output without times",
        ),
        pytest.param(lambda: black_box(noisy(1), outputs={}), "mapping of names to shapes", id="no outputs"),
        pytest.param(lambda: black_box(noisy(1), parameters={}), "at least one", id="no parameters"),
        pytest.param(
            lambda: black_box(noisy(1), parameters={"a b": 1}), "cannot be called 'a b'", id="a name of two words"
        ),
        pytest.param(
            lambda: black_box(noisy(1), parameters={"a": "b"}),
            "default of the parameter 'a' is no finite number",
            id="a default that is no number",
        ),
        pytest.param(lambda: black_box(noisy(1), timeout=0.0), "positive `timeout`", id="no time to run"),
        pytest.param(
            lambda: black_box(noisy(1), retries=-1), "`retries` to be a whole number >= 0", id="fewer than no retries"
        ),
        pytest.param(
            lambda: black_box(noisy(1), timeout=1.0, executor=Joblib(2, "threading")),
            "cannot be timed out in a thread",
            id="a timeout in threads",
        ),
        pytest.param(
            lambda: black_box(noisy(1), dates=[dt.date(2020, 1, 1)]),
            "4 output times and 1 dates",
            id="fewer dates than output times",
        ),
        pytest.param(lambda: Joblib(0), "at least 1, or -1", id="no workers"),
        pytest.param(lambda: command(["no-such-program"]), "no program 'no-such-program'", id="no such program"),
        pytest.param(
            lambda: command(["echo", "{betta}"]),
            r"placeholder \{betta\}, and there are mu, rates, seed",
            id="a placeholder of no parameter",
        ),
        pytest.param(
            lambda: command(["echo"], parameters={"seed": 1.0}), "cannot be called 'seed'", id="a parameter called seed"
        ),
        pytest.param(lambda: command("echo 1"), "a list of strings", id="a command in one string"),
    ],
)
def test_a_black_box_that_cannot_run_is_refused_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Calibration ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator", [cal.FlowScore(), cal.FiniteDifferences()], ids=["flow score", "finite differences"]
)
def test_a_black_box_with_noise_has_the_conjugate_posterior_of_a_normal_mean(estimator):
    """Noise of the simulator adds a constant to the mean squared error, so the posterior is the conjugate one."""
    model = black_box(noisy(0.2))
    sd, n = 0.5, len(DATA["x"])
    problem = cal.Problem(model, DATA, cal.losses.GaussianLogLikelihood(sd))
    method = cal.GVI(
        estimator=estimator, simulations=40, max_updates=300, learning_rate=5e-2, final_learning_rate=1e-3,
        evaluate_every=100, kl_samples=100, family=cal.posteriors.FullRankGaussian(),
    )  # fmt: skip
    result = cal.calibrate(problem, method=method, seed=2, progress=False)
    variance = 1 / (1 + n / sd**2)
    draws = np.asarray(result.sample(0, 4000)["mu"])
    assert abs(draws.mean() - variance * DATA["x"].sum() / sd**2) < 0.2 * np.sqrt(variance)
    assert abs(draws.std() / np.sqrt(variance) - 1) < 0.15
    assert result.n_failed == model.n_failed == 0


def test_an_output_too_large_for_float32_is_a_failed_run():
    model = black_box(lambda params, seed: {"x": [1e300] * 4})
    assert np.isnan(cal.simulate(model, model.default_params, seed=0).outputs["x"]).all()
    assert model.n_failed == 1
    assert "output 'x' is too large for float32" in model.why_failed


def test_what_data_constrain_is_known_without_derivatives():
    problem = cal.Problem(black_box(noisy(1.0)), DATA, cal.losses.GaussianLogLikelihood(1.0))
    method = cal.GVI(estimator=cal.FlowScore(), family=cal.posteriors.FullRankGaussian(scale=0.5))
    posterior = method.init(problem, cal.Prior.of(problem), 0).posterior
    found = cal.checks.identifiability(problem, posterior)
    np.testing.assert_allclose(found.contraction, 0.75, atol=0.03)
    assert found.local is None
    assert "no local information" in found.sentence()


@pytest.mark.parametrize("method", [cal.Point(), cal.NUTS(), cal.MALA()], ids=lambda method: type(method).__name__)
def test_a_method_that_needs_a_derivative_is_refused_before_it_runs(method):
    model = black_box(noisy(1.0))
    problem = cal.Problem(model, DATA, cal.losses.GaussianLogLikelihood(1.0))
    with pytest.raises(ValueError, match="BlackBox has no derivative"):
        method.check(problem, cal.Prior.of(problem))
    assert model.n_runs == 0


def test_a_method_that_needs_no_derivative_takes_a_black_box():
    model = black_box(noisy(1.0))
    problem = cal.Problem(model, DATA, cal.losses.GaussianLogLikelihood(1.0))
    cal.SMCABC().check(problem, cal.Prior.of(problem))
    assert model.n_runs == 0


# Elsewhere ------------------------------------------------------------------------------------------------------------


def test_workers_of_dask_give_the_same_runs():
    distributed = pytest.importorskip("distributed")
    import joblib

    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        model = black_box(noisy(1.0), executor=Joblib())
        mu = np.linspace(-1, 1, 6)
        np.testing.assert_array_equal(losses(model, mu), losses(black_box(noisy(1.0)), mu))
