"""Signs of failure: each is told where it is, once, and not elsewhere; the check at the start of a calibration."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import toys
from test_diagnostics import Reversed, SometimesEnormous, Tripled

import calibrant as cal
from calibrant.diagnostics import StartCheck, start_check
from calibrant.inference import _memory, _watch
from calibrant.inference._signal import RunningSignal, signal_to_noise
from calibrant.inference._watch import Watch


def history(*objectives, kl=1.0, every=10, error=0.1):
    return [
        {"update": i * every, "objective": x, "kl": i * kl, "standard_error": error} for i, x in enumerate(objectives)
    ]


def recent(n=20, **changed):
    out = {
        "loss": np.linspace(1.0, 2.0, n),
        "gradient_norm": np.linspace(1.0, 3.0, n),
        "signal_to_noise": np.full(n, 3.0),
        "failed": np.zeros(n),
    }
    return out | changed


def names(found):
    return [s.name for s in found]


def test_a_healthy_run_shows_no_sign_of_failure():
    watch = Watch(1000)
    for n in range(2, 30):
        assert watch(history(*(10.0 * 0.7**i for i in range(n))), recent()) == []
    assert Watch(40)(history(10.0, 2.0, 1.05, 1.0, 1.0), recent()) == []


NOISE = {"signal_to_noise": np.full(20, 1.0)}
EXPLODING = {"gradient_norm": np.append(np.ones(19), 1e6)}
FAILING = {"failed": np.where(np.arange(20) == 0, 0.6, 0.0)}
DIVERGING = {"loss": np.append(np.ones(19), 1e9)}


@pytest.mark.parametrize(
    ("name", "objectives", "changed"),
    [
        pytest.param("gradients are noise", (10.0, 10.0, 10.1), NOISE, id="gradients are noise"),
        pytest.param("gradients explode", (10.0, 8.0, 6.0), EXPLODING, id="gradients explode"),
        pytest.param("simulations fail", (10.0, 8.0, 6.0), FAILING, id="simulations fail"),
        pytest.param("simulations diverge", (10.0, 8.0, 6.0), DIVERGING, id="simulations diverge"),
    ],
)
def test_a_sign_of_failure_is_told_once(name, objectives, changed):
    watch = Watch(1000)
    found = watch(history(*objectives), recent(**changed))
    assert names(found) == [name]
    assert found[0].update == 20
    assert str(found[0]).startswith(name)
    assert watch(history(*objectives, objectives[-1]), recent(**changed)) == []
    assert watch.seen == found


def test_noise_is_no_sign_where_the_objective_fell():
    assert Watch(1000)(history(10.0, 5.0, 5.0), recent(**NOISE)) == []


@pytest.mark.parametrize("signal", [0.0, 0.5], ids=["noise alone", "a signal"])
def test_signal_to_noise_of_one_gradient_an_update_is_that_of_its_definition(signal):
    """The root mean square over updates is as by the definition: the squared mean over its variance, whose expectation
    is one for noise alone, and `signal^2 / (variance of the mean)` more with a signal."""
    dim, updates, burnt = 20, 4000, 100
    noise = 0.02 * jax.random.normal(jax.random.key(0), (updates, 1, dim))
    g = noise + 0.02 * signal / np.sqrt(dim)

    def told(running, g):
        running = running.told(g, jnp.ones(1, bool))
        return running, running.ratio

    ratios = np.asarray(jax.lax.scan(told, RunningSignal.none(dim), g)[1])
    assert np.all(np.isnan(ratios[:9]))
    assert np.all(np.isfinite(ratios[9:]))
    weight = 0.1 / 1.9  # of the squared weights of a long memory
    expected = 1 + signal**2 / dim / weight
    blocks = (ratios[burnt:] ** 2).reshape(-1, 100).mean(axis=1)  # of about independent blocks
    error = np.std(blocks, ddof=1) / np.sqrt(len(blocks))
    assert abs(np.mean(blocks) - expected) < 4 * error + 0.02 * expected
    one_update = signal_to_noise(g[:20, 0], jnp.ones(20, bool))
    assert 0.3 < float(one_update) < 3 + 20 * signal


def test_a_gradient_that_is_not_finite_does_not_spoil_the_signal():
    running = RunningSignal.none(2)
    for g, finite in (([0.1, 0.0], True), ([np.nan, 0.0], True), ([0.1, 0.0], False), ([1e30, 0.0], True)):
        running = running.told(jnp.array([g]), jnp.array([finite]))
    assert int(running.count) == 1
    np.testing.assert_allclose(running.square, 0.1 * 0.1**2, rtol=1e-6)


def test_the_running_signal_does_not_depend_on_the_scale_of_gradients():
    """Not even of gradients of noise that are rarely long and mostly point the other way."""
    rare = jax.random.bernoulli(jax.random.key(1), 0.1, (300, 1, 1))

    def ratios(scale):
        def told(running, g):
            running = running.told(g, jnp.ones(1, bool))
            return running, running.ratio

        return np.asarray(jax.lax.scan(told, RunningSignal.none(1), scale * jnp.where(rare, 90.0, -10.0))[1])

    np.testing.assert_allclose(ratios(1e-3)[100:], ratios(1.0)[100:], rtol=1e-3)
    assert np.nanmedian(ratios(1.0)) < 1.3


def test_a_calibration_with_one_simulation_an_update_records_the_running_signal():
    """As JUNE's configurations have it; from the tenth gradient on."""
    problem = cal.Problem(toys.Drift(), 0.5 * np.arange(1.0, 9.0), cal.losses.MeanSquaredError(), steps=8)
    method = cal.GVI(
        simulations=1, max_updates=40, evaluate_every=20, evaluation_simulations=10, kl_samples=20,
        family=cal.posteriors.FullRankGaussian(),
    )  # fmt: skip
    ratios = cal.calibrate(problem, method=method, seed=0, progress=False).updates["signal_to_noise"]
    assert np.all(np.isnan(ratios[:9]))
    assert np.all(np.isfinite(ratios[9:]))


def test_one_large_gradient_after_zeros_is_told_as_an_explosion():
    found = Watch(1000)(history(10.0, 8.0), recent(gradient_norm=np.append(np.zeros(19), 1e6)))
    assert names(found) == ["gradients explode"]


def test_memory_in_use_is_that_of_this_process():
    assert _memory.memory_in_use() == pytest.approx(_memory.resident_memory(), rel=0.1)
    assert _memory.memory_in_use() > 2**24


def test_an_objective_that_is_still_falling_at_the_end_is_told_and_not_before():
    falling = history(*np.linspace(10, 1, 9))
    assert names(Watch(80)(falling, recent())) == ["still falling at the end"]
    assert Watch(8000)(falling, recent()) == []


def test_a_flow_that_has_hardly_moved_is_told_where_the_run_was_long_enough_to_move_it():
    still = history(*[10.0] * 6, kl=1e-4)
    assert names(Watch(100)(still, recent())) == ["the flow has hardly moved"]
    assert Watch(10_000)(still, recent()) == []


@pytest.mark.parametrize(
    ("used", "told"),
    [
        pytest.param(20 * 2**30, ["memory is near its limit"], id="near its limit"),
        pytest.param(2**29, [], id="far from its limit"),
        pytest.param(None, [], id="unknown"),
    ],
)
def test_memory_is_told_where_it_is_near_its_limit_alone(used, told, monkeypatch):
    monkeypatch.setattr(_watch, "available_memory", lambda: 2**30)
    monkeypatch.setattr(_watch, "memory_in_use", lambda: used)
    assert names(Watch(1000)(history(3.0, 2.0), recent())) == told


def drift():
    return cal.Problem(toys.Drift(), 0.5 * np.arange(1.0, 9.0), cal.losses.MeanSquaredError(), steps=8)


def test_a_right_gradient_at_the_start_is_found_right():
    it = drift()
    right = start_check(it, cal.Prior.of(it), cal.GVI())
    assert right is not None
    np.testing.assert_allclose(right.ratio, 1.0, atol=1e-2)
    assert right.warning() == ""
    assert right.rows()[0][0] == "theta"
    assert right.describe()["theta"]["ratio"] == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize(
    ("estimator", "told"),
    [
        pytest.param(Reversed(), "theta has the wrong sign", id="the wrong sign"),
        pytest.param(Tripled(), "theta is off by more than two", id="three times the size"),
    ],
)
def test_a_wrong_gradient_at_the_start_is_told_by(estimator, told):
    it = drift()
    wrong = start_check(it, cal.Prior.of(it), cal.GVI(estimator=estimator))
    assert wrong is not None
    assert told in wrong.warning()


@pytest.mark.parametrize(
    "method",
    [cal.GVI(estimator=cal.FlowScore()), cal.GVI(estimator=cal.FiniteDifferences()), cal.inference.SMCABC()],
    ids=["flow score", "finite differences", "ABC"],
)
def test_a_method_that_takes_no_gradient_of_a_loss_is_not_checked_at_the_start(method):
    it = drift()
    assert start_check(it, cal.Prior.of(it), method) is None


def test_a_check_of_gradients_that_sees_noise_alone_says_so():
    check = StartCheck(("theta", "noise"), np.array([-7.5e9, 1.0]), np.array([7.4e9, 0.1]), np.ones(2, bool))
    assert check.rows() == [("theta", "all noise (± 7e+09)"), ("noise", "1 ± 0.1")]
    assert "theta is all noise" in check.warning()


class Notes(cal.AbstractProgress):
    def __init__(self):
        self.notes = []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def advance(self, updates, message):
        pass

    def note(self, what):
        self.notes.append(what)


def test_a_calibration_tells_and_saves_signs_of_failure_and_its_check_of_gradients(tmp_path):
    def loss(simulations, data, params):
        fails = (params["theta"] > 1.0) & (jnp.sum(simulations) > 0)
        return jnp.mean((simulations - data) ** 2) + jnp.where(fails, jnp.nan, 0.0)

    it = cal.Problem(toys.Drift(), 0.5 * np.arange(1.0, 9.0), cal.losses.CustomLoss(loss), steps=8)
    method = cal.GVI(
        max_updates=20, evaluate_every=10, kl_samples=20, evaluation_simulations=10,
        family=cal.posteriors.FullRankGaussian(),
    )  # fmt: skip
    progress = Notes()
    calibration = cal.calibrate(it, method=method, progress=progress)
    assert [type(n).__name__ for n in progress.notes[:1]] == ["Table"]
    assert any("simulations fail" in str(n) for n in progress.notes)
    assert names(calibration.signatures and [_watch.Signature(**s) for s in calibration.signatures]) == [
        "simulations fail"
    ]
    assert calibration.gradient_check is not None
    calibration.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["signatures"][0]["name"] == "simulations fail"
    assert set(manifest["gradient_check"]) == {"theta"}
    quiet = cal.calibrate(it, method=method, progress=False)
    assert quiet.gradient_check is None
    assert jax.tree.all(jax.tree.map(np.array_equal, quiet.sample(0, 5), calibration.sample(0, 5)))


def test_a_check_of_gradients_in_too_many_numbers_is_left_out_and_that_is_told():
    model = cal.models.RegionalSIR(70, areas=5, steps=13, days=1)
    loss = cal.losses.Streams({"infected": cal.losses.MeanSquaredError(scale=10.0)})
    it = cal.Problem(model, {"infected": np.ones((13, 5))}, loss, params=model.default_params)
    prior = cal.Prior.of(it, {"log_factor": dist.Normal(0.0, 0.3).expand((5, 13))})
    family = cal.posteriors.FullRankGaussian()
    method = cal.GVI(
        max_updates=1, evaluate_every=1, kl_samples=10, evaluation_simulations=2, simulations=1, family=family
    )
    progress = Notes()
    calibration = cal.calibrate(it, prior, method=method, progress=progress)
    assert any("at most 64 numbers" in str(note) for note in progress.notes)
    assert calibration.gradient_check is None


def test_signs_are_seen_however_often_the_objective_is_evaluated():
    problem = cal.Problem(toys.Drift(), 2.0 * np.arange(1.0, 9.0), cal.losses.MeanSquaredError(), steps=8)
    method = cal.GVI(
        max_updates=40, evaluate_every=2, simulations=4, kl_samples=8, evaluation_simulations=4,
        estimator=SometimesEnormous(), family=cal.posteriors.FullRankGaussian(),
    )  # fmt: skip
    result = cal.calibrate(problem, method=method, seed=3, progress=False, throw=False)
    assert "gradients explode" in [s["name"] for s in result.signatures]


@pytest.mark.parametrize(
    "method", [cal.inference.Point(replicates=2), cal.inference.NUTS(replicates=2)], ids=["Point", "NUTS"]
)
def test_every_method_that_takes_gradients_is_checked_at_the_start(method):
    it = drift()
    check = start_check(it, cal.Prior.of(it), method)
    assert check is not None
    np.testing.assert_allclose(check.ratio, 1.0, atol=1e-2)
