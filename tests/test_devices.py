"""The same on one device and on many: the same draws, the same decisions, and derivatives to rounding."""

import dataclasses
import datetime as dt

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from commands import run
from compiling import no_compilation
from covering import product
from divided import BUNDLED, MODELS, june, losses, model_of, params_of, town

import calibrant as cal
from calibrant import _devices, worlds
from calibrant._checkpoints import fingerprint
from calibrant._config import build_model
from calibrant.models.june import Calendar
from calibrant.networks import Incidence, Venues, exact_sum_rows

MESHES = {
    "agents": cal.Devices(agents=4),
    "simulations": cal.Devices(simulations=4),
    "both": cal.Devices(simulations=2, agents=4),
}
TOWN = town()
JUNE = june()


@pytest.mark.optimised
@pytest.mark.parametrize("name", product(MODELS, soon=lambda name: name in ("sir", "brock-hommes")))
def test_agents_decide_the_same_on_one_device_and_on_many(name):
    model, how = model_of(name)
    alone = cal.simulate(model, params_of(model), seed=5, **how).outputs
    agents = 4 if model.n_agents else 1
    with cal.Devices(simulations=8 // agents, agents=agents):
        divided = cal.simulate(model, params_of(model), seed=5, **how).outputs
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(divided), strict=True):
        np.testing.assert_array_equal(a, b)


def _close(ours, theirs, rtol):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.max(np.abs(np.asarray(b)), initial=0)))


HOW = {
    "reverse-full": (cal.ReverseMode(), cal.FullHorizon()),
    "checkpointed-sliding": (cal.CheckpointedReverseMode(), cal.SlidingHorizon(1)),
    "hybrid-block": (cal.HybridMode(), cal.BlockHorizon(3)),
}
SOON = {("agents", "hybrid-block"), ("both", "reverse-full")}


@pytest.mark.parametrize(("mesh", "how"), product(MESHES, HOW, soon=lambda *case: case in SOON))
def test_a_gradient_in_every_mode_is_the_same_on_many_devices(mesh, how, x64):
    modes = HOW[how]
    model, how = cal.models.SIR.small_world(48, household=4, group=6), {"steps": 7}
    alone = losses(model, how, *modes)
    with MESHES[mesh]:
        _close(losses(model, how, *modes), alone, 1e-10)


@pytest.mark.parametrize("name", product(BUNDLED, soon=lambda name: name == "brock-hommes"))
def test_the_gradient_of_a_bundled_model_is_the_same_on_many_devices(name):
    model, how = model_of(name)
    modes = cal.HybridMode(), cal.SlidingHorizon(0)
    alone = losses(model, how, *modes)
    with MESHES["both" if model.n_agents else "simulations"]:
        _close(losses(model, how, *modes), alone, 1e-5)


@pytest.mark.parametrize(
    "name",
    product(
        registry.ESTIMATORS,
        soon=lambda name: name in ("straight-through", "controlled-score", "finite-differences"),
    ),
)
def test_an_estimator_gives_the_same_on_many_devices(name, x64):
    estimator, replicates = registry.ESTIMATORS[name]
    few = hasattr(estimator, "max_outcomes")  # it runs every outcome
    model, how = cal.models.SIR.small_world(4 if few else 16, household=2, group=4), {"steps": 1 if few else 3}
    modes = cal.ReverseMode(), cal.FullHorizon(), estimator, 1 if few else max(replicates, 3)
    alone = losses(model, how, *modes)
    with MESHES["both"]:
        _close(losses(model, how, *modes), alone, 1e-10)


def _small_problem(agents):
    model = cal.models.SIR.small_world(agents)
    data = {"infected": cal.simulate(model, model.Params(), seed=1, steps=20).outputs["infected"]}
    return cal.Problem(model, data, cal.losses.Streams({"infected": cal.losses.MeanSquaredError()}), steps=20)


def test_a_calibration_learns_the_same_on_many_devices():
    problem = _small_problem(200)
    family, few = cal.posteriors.FullRankGaussian(), {"evaluation_simulations": 4, "kl_samples": 20}
    # What a derivative is on a mesh has tests of its own.
    method = cal.GVI(weight=0.1, max_updates=4, evaluate_every=2, family=family, estimator=cal.FlowScore(), **few)
    alone = cal.calibrate(problem, method=method, progress=False)
    with MESHES["both"]:
        divided = cal.calibrate(problem, method=method, progress=False)
    _close(divided.history, alone.history, 1e-4)
    _close(eqx.filter(divided.posterior, eqx.is_array), eqx.filter(alone.posterior, eqx.is_array), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        cal.GVI(max_updates=4, evaluate_every=2, evaluation_simulations=4, kl_samples=20, mode=cal.AutoMode()),
        cal.Point(max_updates=4),
        cal.NUTS(warmup=4, draws=4, chains=2),
        cal.MALA(warmup=4, draws=4, chains=2),
        cal.SMCABC(particles=20),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_method_and_its_checks_find_the_same_on_many_devices(method):
    problem = _small_problem(80)
    alone = cal.calibrate(problem, method=method, progress=False, throw=False)
    with MESHES["both"]:
        divided = cal.calibrate(problem, method=method, progress=False, throw=False)
        if isinstance(method, cal.GVI):
            refitted = dataclasses.replace(method, mode=cal.ReverseMode())
            cal.checks.check(problem, divided, refitted, data_sets=10, fast=True, progress=False)
            cal.diagnostics.gradients(problem, divided.posterior.prior, refitted, points=2, repeats=4)
    _close([row["loss"] for row in divided.history], [row["loss"] for row in alone.history], 1e-4)


def test_arrays_of_agents_are_divided_and_a_second_run_compiles_nothing():
    model = cal.models.SIR.small_world(64)
    with cal.Devices(agents=4):
        placed = cal.Problem(model, {"infected": jnp.zeros(5)}, cal.losses.MeanSquaredError(), steps=5).model
        assert placed.layers[1].venue_of.sharding.shard_shape((64,)) == (16,)
        assert placed.shares.sharding.is_fully_replicated
        cal.simulate(placed, model.Params(), seed=0, steps=5)
        with no_compilation():
            cal.simulate(placed, model.Params(), seed=1, steps=5)
            cal.simulate(model, model.Params(), seed=2, steps=5)


def test_fixed_point_sums_do_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    venue, x = rng.integers(0, 5, 10_000), rng.lognormal(size=10_000).astype(np.float32)
    order = rng.permutation(10_000)
    a = Incidence(venue).sum(jnp.asarray(x))
    b = Incidence(venue[order]).sum(jnp.asarray(x[order]))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, np.bincount(venue, x.astype(float)), rtol=1e-6)
    np.testing.assert_allclose(
        Incidence(venue).sum(jnp.asarray(x), wide=False), np.bincount(venue, x.astype(float)), rtol=1e-4
    )
    assert not jnp.isfinite(Incidence(venue).sum(jnp.asarray(x).at[3].set(jnp.inf))).any()
    ones = Incidence(np.zeros(2**24 + 3, int)).sum(jnp.ones(2**24 + 3))
    assert int(ones[0]) == 2**24 + 4  # the nearest float


@pytest.mark.parametrize("at", [0, 3, 13])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sum_over_devices_shows_an_agent_that_is_not_finite(at, bad):
    network = Incidence(np.array([0, 3, 1, 2] * 4))
    x = jnp.ones(16).at[at].set(bad)
    with cal.Devices(agents=8):
        for sum_ in (network.sum, jax.jit(lambda x: network.sum(x)), lambda x: network.sum(x, wide=False)):
            assert not jnp.isfinite(sum_(_devices.place(x, 16))).any()
    nobody = Incidence(np.array([0, 1, -1]), 2)
    assert nobody.sum(jnp.asarray([1.0, 2.0, np.nan])).tolist() == [1, 2]
    assert nobody.sum(jnp.asarray([1.0, 2.0, 1e30])).tolist() == [1, 2]


def test_sums_over_venues_of_half_precision_whole_and_logical_numbers_are_exact():
    index, venues = jnp.asarray([0, 1, 1], jnp.int32), Venues(2, largest=2)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.int32, jnp.bool_):
        for how in (exact_sum_rows, jax.jit(exact_sum_rows, static_argnums=2)):
            assert how(jnp.ones(3, dtype), index, venues).tolist() == [1, 2]


@pytest.mark.parametrize(
    "x",
    [
        [1e-36, 2e-36, 1e-37, 2e-38, 2e-38, 1e-36],
        [1e-3, 5e5, 2.0, 3.0, 0.1, 7.0],
        [-1.5, 1e6, 1e-4, 2e-4, 3e-4, 0.0],
        [1e-44, 3e-45, 1e-44, 1e-44, 0.0, 0.0],
        [-1e38, 1e37, 1e38, 1.1e38, -1e30, 0.0],
        [0.0] * 6,
        [1.0, 1.0, 1.0, 0.0, 1.0, 1.0],
    ],
)
def test_fixed_point_sums_are_exact_to_rounding_whatever_the_size_of_numbers(x):
    x = np.float32(x)
    network = Incidence(np.array([0, 0, 1, 1, 1, 2]))
    exact = np.bincount([0, 0, 1, 1, 1, 2], x.astype(float))
    sure = np.abs(x).max() * 2.0**-60 * 3**2 * 3 + 2.0**-24 * np.abs(exact) + 1e-44
    assert np.all(np.abs(network.sum(jnp.asarray(x)) - exact) <= sure)
    many = jax.vmap(network.sum)(jnp.stack([x, x[::-1], 1e-3 * x]))
    np.testing.assert_array_equal(many[0], network.sum(jnp.asarray(x)))


def test_a_venue_cut_between_two_blocks_counts_the_agents_of_both(x64):
    # Two blocks of three agents; venues 0 and 1 of each are its own, 2 is one venue with a copy in both.
    network = Incidence(np.array([0, 2, 1, 3, 5, 5]), 6, blocks=2, cut=1)
    x = jnp.asarray([1.0, 2, 3, 4, 5, 6])
    assert network.sum(x).tolist() == [1, 3, 13, 4, 0, 13]
    assert network.sizes.tolist() == [1, 1, 3, 1, 0, 3]
    assert network.sum_of_others(x).tolist() == [0, 11, 0, 0, 8, 7]
    forward, reverse = jax.jacfwd(network.sum_of_others)(x), jax.jacrev(network.sum_of_others)(x)
    expected = np.zeros((6, 6))
    expected[np.ix_([1, 4, 5], [1, 4, 5])] = 1 - np.eye(3)
    np.testing.assert_array_equal(forward, expected)
    np.testing.assert_array_equal(reverse, expected)
    with pytest.raises(ValueError, match="venue of every agent in the agent's own"):
        Incidence(np.array([0, 3, 1, 3, 5, 5]), 6, blocks=2, cut=1)


@pytest.mark.slow
def test_a_world_laid_out_on_disk_is_read_by_parts(tmp_path):
    people = worlds.Population.of(TOWN, blocks=4, near=3)
    people.save(tmp_path / "town.h5")
    on_disk = worlds.Population.open(tmp_path / "town.h5")
    calendar = Calendar(dt.date(2020, 3, 2), 12)
    alone = cal.simulate(JUNE, params_of(JUNE), seed=5, steps=12).outputs["infections"]
    with cal.Devices(agents=2):
        model = cal.models.June(on_disk, calendar)
        assert model.residences.venue_of.sharding.shard_shape((model.n_agents,)) == (model.n_agents // 2,)
        read = cal.simulate(model, params_of(JUNE), seed=5, steps=12).outputs["infections"]
    np.testing.assert_array_equal(read, alone)
    in_one = cal.models.June(TOWN, calendar)
    np.testing.assert_array_equal(cal.simulate(in_one, params_of(JUNE), seed=5, steps=12).outputs["infections"], alone)
    whole = cal.models.June(people, calendar, sampled=True)
    assert fingerprint(whole) == fingerprint(JUNE)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        pytest.param({"blocks": 2}, "laid out in 4 blocks", id="other blocks"),
        pytest.param({"leisure_areas": 2}, "`leisure_areas` = 3", id="other neighbours"),
    ],
)
def test_a_world_laid_out_otherwise_than_asked_is_refused(how, match, tmp_path):
    worlds.Population.of(TOWN, blocks=4, near=3).save(tmp_path / "town.h5")
    with pytest.raises(ValueError, match=match):
        cal.models.June(worlds.Population.open(tmp_path / "town.h5"), Calendar(dt.date(2020, 3, 2), 12), **how)


def test_a_world_that_was_not_laid_out_is_refused(tmp_path):
    TOWN.save(tmp_path / "world.h5")
    with pytest.raises(worlds.WorldError, match="no world laid out"):
        worlds.Population.open(tmp_path / "world.h5")


def test_half_a_world_is_refused(tmp_path):
    worlds.Population.of(TOWN, blocks=4).save(tmp_path / "town.h5")
    (tmp_path / "broken.h5").write_bytes((tmp_path / "town.h5").read_bytes()[:3000])
    with pytest.raises(worlds.WorldError, match="cannot be read as a world"):
        worlds.Population.open(tmp_path / "broken.h5")


def test_dividing_a_world_on_the_command_line(here, monkeypatch, capsys):
    TOWN.save("town.h5")
    code, out, err = run(monkeypatch, capsys, "world", "info", "town.h5", "--shards", "4")
    assert code == 0, err
    balance = worlds.Balance.of(TOWN, 4)
    assert f"{balance.cut_venues:,} of {TOWN.n_activities:,}" in out
    code, out, err = run(monkeypatch, capsys, "world", "divide", "town.h5", "laid-out.h5", "--blocks", "4")
    assert code == 0, err
    assert "4 blocks" in out
    model = build_model("june", {"world": "laid-out.h5", "days": 5, "sampled": True}, here)
    assert model.n_agents == JUNE.n_agents


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(("info", "town.h5", "--shards", "99"), "at most so many blocks", id="more blocks than areas"),
        pytest.param(("divide", "town.h5", "laid-out.h5"), "exists", id="a file that is there"),
        pytest.param(("divide", "none.h5", "other.h5"), "There is no file", id="a file that is not there"),
        pytest.param(("info", "laid-out.h5"), "no world of calibrant", id="a world laid out"),
    ],
)
def test_a_world_that_cannot_be_divided_is_refused_on_the_command_line(arguments, expected, here, monkeypatch, capsys):
    TOWN.save("town.h5")
    worlds.Population.of(TOWN, blocks=4).save("laid-out.h5")
    code, _, err = run(monkeypatch, capsys, "world", *arguments)
    assert code == 2
    assert expected in err


def test_a_fingerprint_does_not_depend_on_the_devices():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=80_000).astype(np.float32), rng.integers(0, 9, 80_000), rng.random(80_000) < 0.5]
    tree = [jnp.asarray(x) for x in arrays] + [jnp.asarray(arrays[0].astype(np.float16))]
    alone = fingerprint(tree)
    with cal.Devices(agents=4):
        assert fingerprint(_devices.place(tree, 80_000)) == alone
    assert fingerprint([tree[0].at[77].add(1e-6), *tree[1:]]) != alone
    assert fingerprint([jnp.flip(tree[0]), *tree[1:]]) != alone


def test_the_mesh_chosen_divides_simulations_first_and_then_agents():
    model = cal.models.SIR.small_world(60)
    problem = cal.Problem(model, {"infected": jnp.zeros(5)}, cal.losses.MeanSquaredError(), steps=5)
    for simulations, expected in ((100, (8, 1)), (8, (8, 1)), (5, (4, 2)), (1, (1, 6))):
        mesh = cal.inference.auto_devices(problem, simulations)
        assert (mesh.simulations, mesh.agents) == expected
    forecast = cal.models.BrockHommesForecast()
    market = cal.Problem(forecast, jnp.zeros(3), cal.losses.MeanSquaredError(), inputs=np.zeros((3, 3)))
    assert str(cal.inference.auto_devices(market, 5)) == "5x1"


@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
def test_a_population_is_the_world_in_another_order(blocks):
    world = TOWN
    people = worlds.Population.of(world, blocks=blocks, near=2)
    here = people.exists
    assert here.sum() == world.n_people
    order = people.index[here]
    assert np.array_equal(np.sort(order), np.arange(world.n_people))
    assert np.array_equal(people.age[here], world.age[order])
    assert np.array_equal(people.area_of[people.area[here]], world.area[order])
    # Who lives together lives together, and nobody else does.
    pairs = np.unique(np.stack([people.residence[here], world.residence[order]]), axis=1).T
    assert len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))
    length = people.age.size // blocks
    assert np.array_equal(people.residence[here] // (people.n_residences // blocks), np.flatnonzero(here) // length)
    # So do those who work together, over the copies of what is cut.
    rows = people.n_activities // blocks
    own = people.activity[here]
    merged = np.where(own < 0, -1, np.where(own % rows >= rows - people.cut, own % rows, own + rows))
    residents = people.lives_at_activity[here]
    works = ~residents & (own >= 0)
    assert np.array_equal(works, (world.activity[order] >= 0) & ~residents)
    pairs = np.unique(np.stack([merged[works], world.activity[order][works]]), axis=1).T
    assert len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))


def _simulated_on_four(model, params, **how):
    with cal.Devices(agents=4):
        cal.simulate(model, params, seed=0, **how)


REFUSED = {
    "more devices than there are": (
        lambda: cal.Devices(simulations=9).__enter__(),
        "9 x 1 devices were asked for and there are 8",
    ),
    "no devices": (lambda: cal.Devices(agents=0), "whole number >= 1"),
    "agents that do not divide evenly": (
        lambda: _simulated_on_four(cal.models.SIR.small_world(50), cal.models.SIR.Params(), steps=3),
        "50 agents cannot be divided evenly over 4",
    ),
    "a model that does not say how many agents it has": (
        lambda: _simulated_on_four(
            cal.models.BrockHommesForecast(), cal.models.BrockHommesForecast.Params(), inputs=np.zeros((3, 3))
        ),
        "does not say how many agents",
    ),
    "more blocks than areas": (
        lambda: worlds.Population.of(worlds.build_world(500, seed=0), blocks=99),
        "at most so many blocks, not 99",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_divided_is_refused(what):
    make, match = REFUSED[what]
    with pytest.raises(ValueError, match=match):
        make()
