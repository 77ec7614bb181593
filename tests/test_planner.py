"""The planner: what fits is found, what does not is refused, and a plan changes no result."""

import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import toys

import calibrant as cal
from calibrant import _programs
from calibrant._programs import Program, compiler_options
from calibrant.inference import _planner as planner
from calibrant.inference._gvi import _gradients_for_plan

STEPS, AGENTS = 30, 1_000


def problem(agents=AGENTS, steps=STEPS):
    return cal.Problem(toys.Flips(agents), np.full(steps, 200.0), cal.losses.MeanSquaredError(100.0), steps=steps)


@pytest.fixture(autouse=True)
def timed_once(monkeypatch):
    """What a program takes does not matter here."""
    monkeypatch.setattr(planner, "_TIMED_FOR", 1e-9)


PRIOR = cal.Prior({"p": dist.Normal(0.4, 0.3), "q": dist.Normal(0.3, 0.2)})


@pytest.fixture(scope="module")
def town():
    return problem(), PRIOR


@pytest.fixture(scope="module")
def free(town):
    """The plan where memory is no matter."""
    return gvi(mode=cal.AutoMode(8.0)).planned(*town)[1]


def gvi(**kwargs):
    quick = {"simulations": 4, "evaluation_simulations": 6, "max_updates": 2, "evaluate_every": 1, "kl_samples": 10}
    return cal.GVI(family=cal.posteriors.FullRankGaussian(), **(quick | kwargs))


def test_reverse_mode_is_given_up_where_it_does_not_fit(town):
    """Reverse mode of one simulation needs more than the budget: the planner ends inside it."""
    state = AGENTS * 4
    budget = 36 * state  # so many arrays over agents, where reverse mode stores several a step
    method, plan = gvi(mode=cal.AutoMode(budget / 2**30), simulations=2).planned(*town)
    by_name = {o.name: o for o in plan.options}
    assert by_name["reverse"].simulations_at_once == 0
    assert by_name["reverse"].memory > budget
    assert plan.chosen.fits
    assert plan.chosen.memory <= budget
    assert not isinstance(method.mode, (cal.ReverseMode, cal.AutoMode))
    assert method.simulations_at_once == plan.chosen.simulations_at_once
    assert dict(zip(planner.PLAN_COLUMNS, plan.rows()[0], strict=True))["simulations at once"] == "does not fit"
    assert sum("(chosen)" in row[0] for row in plan.rows()) == 1
    assert {o.name: o.cut for o in plan.options}["reverse"] == ""


def test_what_runs_out_of_memory_after_all_is_not_chosen(town, free, monkeypatch):
    run = planner.Compiled.__call__

    def out_of_memory(self):
        if self.memory == free.chosen.memory:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        run(self)

    monkeypatch.setattr(planner.Compiled, "__call__", out_of_memory)
    method, plan = gvi(mode=cal.AutoMode(8.0)).planned(*town)
    assert plan.chosen.memory != free.chosen.memory
    assert np.isfinite(plan.chosen.seconds)
    assert method.simulations_at_once == plan.chosen.simulations_at_once


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is reset by Linux alone")
def test_the_plan_stays_inside_the_budget_as_measured():
    """Resident memory at its peak, in MB, where reverse mode takes several times the budget."""
    budget = 200.0
    command = [sys.executable, str(Path(__file__).with_name("peak.py")), str(budget)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    got = json.loads(done.stdout.splitlines()[-1])
    assert got["reverse"] > 2 * budget
    assert got["planned"] <= budget


def test_a_group_of_simulations_is_found(town, free):
    """All of an update do not fit in reverse mode, and some do."""
    whole = next(o for o in free.options if o.name == "reverse")
    assert whole.simulations_at_once is None
    _, plan = gvi(mode=cal.AutoMode(0.6 * whole.memory / 2**30)).planned(*town)
    some = next(o for o in plan.options if o.name == "reverse")
    assert 1 <= some.simulations_at_once <= 3
    assert some.memory <= plan.budget


@pytest.mark.parametrize(
    ("mode", "at_once", "separable", "cut"),
    [
        (cal.HybridMode(), None, True, "outputs"),
        (cal.HybridMode(), 4, True, "loss"),
        (cal.HybridMode(2), 2, True, "loss"),
        (cal.HybridMode(), 1, True, "outputs"),  # less than a value's replicates
        (cal.HybridMode(), 8, True, "outputs"),  # all of an update
        (cal.HybridMode(), 4, False, "outputs"),
        (cal.HybridMode(), 0, True, ""),
        (cal.ReverseMode(), 4, True, ""),
    ],
)
def test_where_a_hybrid_is_cut(mode, at_once, separable, cut):
    option = planner.Option("", mode, at_once, 1, 1.0)
    assert planner._cut(option, 2, 8, separable) == cut


def test_a_plan_changes_no_result(town):
    it, prior = town
    method, plan = gvi(mode=cal.AutoMode(8.0)).planned(it, prior)
    assert plan.evaluation_at_once is None
    results = []
    for each in (method, gvi(mode=cal.HybridMode(), simulations_at_once=1), gvi(evaluation_at_once=2)):
        state, record = each.step(it, each.init(it, prior, 3), 2)
        results.append(np.append(np.stack([record.loss, record.gradient_norm]), each.evaluate(it, state, 0).objective))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-4)


def test_a_budget_smaller_than_one_simulation_is_refused(town):
    with pytest.raises(ValueError, match=r"A gradient of one simulation needs .* allow more `memory`"):
        gvi(mode=cal.AutoMode(1e-6)).planned(*town)


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(cal.FiniteDifferences(), id="differences"),
        pytest.param(cal.FlowScore(), id="flow score"),
        pytest.param(cal.Corrected(), id="corrected"),
        pytest.param(cal.estimators.REBAR(), id="one that learns", marks=pytest.mark.slow),
    ],
)
def test_a_gradient_of_every_kind_is_planned(estimator):
    it = problem(agents=50, steps=3)
    method, plan = gvi(mode=cal.AutoMode(), estimator=estimator).planned(it, PRIOR)
    derivative = isinstance(estimator, cal.estimators.REBAR | cal.Corrected)
    assert {o.name for o in plan.options} >= ({"reverse", "hybrid"} if derivative else {"no derivative"})
    method.check(it, PRIOR)


def test_memory_is_what_the_compiler_says(town):
    compiled = planner.Compiled(lambda x: jnp.sum(jnp.sort(x)), (jnp.ones(100_000),))
    assert 400_000 <= compiled.memory < 2_000_000
    assert compiled.seconds() > 0


@pytest.mark.optimised
def test_programs_hold_no_kernels_of_a_library(town):
    """They would take memory that the compiler does not count."""
    assert compiler_options(), "this compiler does not know the option: look for another"
    x = jnp.ones((300_000, 2), jnp.float32)

    def total(x):
        return jnp.sum(jnp.exp(-x * x) * jnp.where(x > 0, x, 1.0) + x, axis=0)

    assert "ynn" in (jax.jit(total).lower(x).compile().as_text() or "")  # as it would be otherwise
    assert "ynn" not in Program(total).lower(x).compile().compiled.as_text()
    it, prior = town
    z, words = jnp.zeros((2, prior.dim)), cal.seeds(0, (2, 1))
    update = planner.Compiled(_gradients_for_plan, (cal.estimators.Pathwise(), gvi(), it, prior, z, words))
    assert "ynn" not in update._run.compiled.as_text()


def test_a_program_runs_within_another():
    total = Program(lambda x: jnp.sum(x * x))
    x = jnp.arange(3.0)
    assert float(jax.jit(lambda x: total(x) + 1)(x)) == float(total(x)) + 1
    np.testing.assert_array_equal(jax.grad(total)(x), 2 * x)
    np.testing.assert_array_equal(jax.vmap(total)(jnp.stack([x, x])), [5.0, 5.0])
    assert float(jax.jit(lambda y: total(x) + y)(1.0)) == 6.0  # no argument of it is traced
    np.testing.assert_array_equal(jax.grad(lambda y: Program(lambda x: jnp.sum(x * y))(x))(2.0), 3.0)


def test_a_compiler_that_does_not_know_the_option_is_not_asked(monkeypatch):
    monkeypatch.setattr(_programs, "_NO_KERNELS", {"xla_no_such_option": ""})
    assert not _programs._known.__wrapped__()


def test_close_modes_are_timed_again_in_turn():
    """A mode that was disturbed the first time it ran is chosen where it is faster after all."""
    times = {"ReverseMode": [0.5, 0.3], "CheckpointedReverseMode": [0.9], "HybridMode": [0.4]}

    def program(mode, at_once):
        del at_once
        left = times[type(mode).__name__]

        def seconds():
            return left.pop(0) if len(left) > 1 else left[0]

        return types.SimpleNamespace(memory=1, operations=1.0, seconds=seconds)

    found = planner.plan(program, dim=2, steps=4, simulations=1, row=1, budget=10, derivative=True)
    assert found.chosen.name == "reverse"
    assert [o.seconds for o in found.options] == [0.3, 0.9, 0.4]


@pytest.mark.parametrize(("rest", "at_once"), [(1000, None), (7 * 11, 9), (7 * 2, 2), (7, 1), (6, 0)])
def test_fitting_finds_whole_rows(rest, at_once):
    """Memory is 10 bytes and 7 more a simulation; rows are of 3."""

    def needs(n):
        return types.SimpleNamespace(memory=10 + 7 * (12 if n is None else n))

    assert planner.fitting(needs, 12, 3, 10 + rest)[0] == at_once


def test_available_memory_minds_the_control_group(monkeypatch):
    from calibrant.inference import _memory

    free = _memory.available_memory()
    assert 0 < free < 2**50
    files = {
        "/sys/fs/cgroup/memory.max": "1000\n",
        "/sys/fs/cgroup/memory.current": "900\n",
        "/sys/fs/cgroup/memory.stat": "anon 10\ninactive_file 50\n",
        "/proc/meminfo": "MemTotal: 100 kB\nMemAvailable:  50 kB\n",
    }
    monkeypatch.setattr(_memory, "_read", lambda path: files[path])
    assert _memory.available_memory() == 150
    files["/sys/fs/cgroup/memory.max"] = "1000000\n"
    assert _memory.available_memory() == 50 * 1024


@pytest.mark.parametrize("memory", [0.0, -1.0, float("inf"), float("nan")])
def test_a_budget_that_is_no_positive_number_is_refused(memory):
    with pytest.raises(ValueError, match="positive `memory`"):
        cal.AutoMode(memory)


@pytest.mark.parametrize("given", ["simulations_at_once", "evaluation_at_once"])
def test_a_number_at_once_is_refused_where_the_planner_chooses_it(given):
    with pytest.raises(ValueError, match="AutoMode chooses"):
        cal.GVI(mode=cal.AutoMode(), **{given: 2})


def test_an_update_is_refused_before_there_is_a_plan():
    it = problem(agents=10, steps=2)
    method = gvi(mode=cal.AutoMode())
    with pytest.raises(ValueError, match="settled before the first update"):
        method.step(it, method.init(it, PRIOR, 0), 1)


def test_a_planned_calibration_keeps_its_plan(tmp_path):
    it = cal.Problem(toys.Drift(), 0.5 * np.arange(1.0, 9.0), cal.losses.MeanSquaredError(), steps=8)
    calibration = cal.calibrate(it, method=gvi(mode=cal.AutoMode(1.0)), progress=False)
    assert calibration.plan["chosen"] in [o["mode"] for o in calibration.plan["options"]]
    assert calibration.timings["planning"] > 0
    assert calibration.gradient_check is None  # nobody looks
    again = cal.calibrate(it, method=gvi(), progress=False)
    assert again.plan is None
    assert jax.tree.all(jax.tree.map(np.allclose, again.sample(0, 5), calibration.sample(0, 5)))


def test_chunks_of_the_hybrid_in_a_calibration(town):
    """Many tangents, few at a time, under `vmap` and `jit`."""
    it, prior = town
    few, all_ = gvi(mode=cal.HybridMode(chunk=1)), gvi(mode=cal.HybridMode())
    records = [m.step(it, m.init(it, prior, 3), 1)[1] for m in (few, all_)]
    np.testing.assert_allclose(records[0].gradient_norm, records[1].gradient_norm, rtol=1e-4)
