"""The generator, and what a draw depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import RULES
from scipy import stats

import calibrant as cal
from calibrant._randomness import Randomness, as_seed
from calibrant._sampling import relaxed_bernoulli, relaxed_categorical
from calibrant._threefry import threefry2x32, uniform_from_bits


def rng_of(seed=1, step=1, phase="step", rule=None, recorder=None):
    return Randomness.of_step(as_seed(seed), phase, step, rule or cal.StraightThrough(), recorder=recorder)


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [  # Random123, kat_vectors, threefry2x32 with 20 rounds
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_threefry_gives_the_known_answers_of_random123(key, counter, answer):
    got = threefry2x32(tuple(map(jnp.uint32, key)), tuple(map(jnp.uint32, counter)))
    assert tuple(map(int, got)) == answer


def test_uniforms_stay_inside_and_resolve_rare_events():
    bits = jnp.array([0, 1, 2**31, 2**32 - 1], dtype=jnp.uint32)
    u = uniform_from_bits(bits, jnp.float32)
    assert np.all((np.asarray(u) > 0) & (np.asarray(u) < 1))
    np.testing.assert_allclose(u[:2], [2.0**-33, 1.5 * 2.0**-32], rtol=1e-6)


N = 200_000


@pytest.mark.parametrize(
    "sample",
    [
        lambda: rng_of().uniform("a", (N,)),
        lambda: rng_of().uniform("a", (N // 4, 4)).ravel(),
        lambda: jax.vmap(lambda s: rng_of(s).uniform("a", (2,))[1])(cal.seeds(0, N)),
        lambda: jax.vmap(lambda t: rng_of(0, t).uniform("a", ()))(jnp.arange(N)),
        lambda: jnp.stack([rng_of(0).uniform(f"site {i}", (100,)) for i in range(50)]).ravel(),
    ],
    ids=["agents", "lanes", "seeds", "steps", "sites"],
)
def test_draws_are_uniform_across(sample):
    u = np.asarray(sample(), dtype=np.float64)
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    counts = np.histogram(u, 64, (0, 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_draws_are_independent_across_agents_steps_sites_and_seeds():
    base = np.asarray(rng_of(1, 1).uniform("a", (N,)))
    others = {
        "next agent": np.roll(base, 1),
        "next step": rng_of(1, 2).uniform("a", (N,)),
        "other site": rng_of(1, 1).uniform("b", (N,)),
        "next seed": rng_of(2, 1).uniform("a", (N,)),
        "high word of the seed": rng_of(1 + 2**32, 1).uniform("a", (N,)),
        "other phase": rng_of(1, 1, "observe").uniform("a", (N,)),
        "iteration": rng_of(1, 1).at(0).uniform("a", (N,)),
        "other lane": np.asarray(rng_of(1, 1).uniform("a", (N, 2)))[:, 1],
    }
    for name, other in others.items():
        table = np.histogram2d(base, np.asarray(other), 12, [[0, 1], [0, 1]])[0]
        assert stats.chisquare(table.ravel()).pvalue > 1e-3, name
        assert abs(np.corrcoef(base, np.asarray(other))[0, 1]) < 5 / np.sqrt(N), name


def test_bernoulli_draws_are_as_frequent_as_probable_and_certain_events_happen():
    p = jnp.array([0.0, 1e-3, 0.3, 0.999, 1.0])
    hits = np.asarray(rng_of().bernoulli(jnp.broadcast_to(p, (N, 5)), site="a")).mean(0)
    assert hits[0] == 0
    assert hits[4] == 1
    error = np.sqrt(np.asarray(p) * (1 - np.asarray(p)) / N)
    assert np.all(np.abs(hits - np.asarray(p)) <= 4 * error + 1e-12)


def test_categorical_draws_are_as_frequent_as_probable():
    p = jnp.array([0.1, 0.0, 0.6, 0.3])
    draws = np.asarray(rng_of().categorical(p, site="a", shape=(N,)))
    assert np.all(draws.sum(1) == 1)
    assert set(np.unique(draws)) == {0.0, 1.0}
    assert np.all(np.abs(draws.mean(0) - np.asarray(p)) <= 4 * np.sqrt(np.asarray(p * (1 - p)) / N))


def test_relaxed_categorical_is_gumbel_softmax():
    """Given the winner or not, the perturbed logits are Gumbels: the relaxed mean equals that of plain sampling."""
    p = np.array([0.2, 0.5, 0.3])
    tau = 0.7
    soft = np.asarray(
        rng_of(rule=cal.GumbelSoftmax(tau, straight_through=False)).categorical(jnp.asarray(p), site="a", shape=(N,))
    )
    g = np.random.default_rng(0).gumbel(size=(N, 3))
    plain = np.exp((np.log(p) + g) / tau)
    plain /= plain.sum(1, keepdims=True)
    for i in range(3):
        assert stats.ks_2samp(soft[:, i], plain[:, i]).pvalue > 1e-3


def test_hard_samples_do_not_depend_on_the_rule():
    p = jnp.linspace(0, 1, 500)
    q = jax.nn.softmax(jnp.arange(1500.0).reshape(500, 3) % 7)
    for draw in (lambda r: r.bernoulli(p, site="a"), lambda r: r.categorical(q, site="a")):
        first, *rest = [np.asarray(draw(rng_of(rule=rule))) for rule in RULES.values() if rule.hard]
        for other in rest:
            np.testing.assert_array_equal(first, other)


def test_agent_draws_do_not_depend_on_the_number_of_agents_or_where_they_live():
    for shape in ((), (3,), (5,)):
        few = rng_of().uniform("a", (10, *shape))
        np.testing.assert_array_equal(few, rng_of().uniform("a", (1000, *shape))[:10])
        index = jnp.array([7, 2, 9])
        np.testing.assert_array_equal(few[index], rng_of().uniform("a", (3, *shape), agents=index))
    p = jnp.linspace(0.1, 0.9, 10)
    whole = rng_of().bernoulli(p, site="b")
    np.testing.assert_array_equal(whole[4:], rng_of().bernoulli(p[4:], site="b", agents=jnp.arange(4, 10)))


def test_a_simulation_draws_the_same_under_vmap_jit_chunks_and_in_a_second_pass():
    model = cal.models.SIR.small_world(60)
    words = cal.seeds(3, 5)

    def run(seed):
        return cal.simulate(model, model.Params(), seed=seed, steps=12).outputs["infected"]

    one_by_one = np.stack([run(w) for w in words])
    np.testing.assert_array_equal(one_by_one, jax.vmap(run)(words))
    np.testing.assert_array_equal(one_by_one, jax.jit(lambda w: jax.lax.map(run, w))(words))
    np.testing.assert_array_equal(one_by_one, np.stack([run(w) for w in words]))
    assert len(np.unique(one_by_one, axis=0)) == 5
    np.testing.assert_array_equal(cal.seeds(3, 2), words[:2])


# Control flow inside a step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda draw: jax.lax.scan(lambda c, x: (c, draw()), 0.0, jnp.arange(3)), id="scan"),
        pytest.param(lambda draw: jax.vmap(lambda x: draw() + x)(jnp.arange(3.0)), id="vmap"),
        pytest.param(lambda draw: jax.lax.cond(jnp.array(True), draw, lambda: 0.0), id="cond"),
        pytest.param(lambda draw: jax.checkpoint(lambda x: draw() + x)(1.0), id="checkpoint"),
    ],
)
def test_a_draw_that_jax_may_repeat_is_refused_inside(run):
    rng = rng_of()
    with pytest.raises(ValueError, match="silently repeat"):
        run(lambda: rng.uniform("a"))


def test_iterations_draw_differently_however_they_are_written():
    by_scan = rng_of().scan(lambda r, c, x: (c, r.uniform("a", (2,))), 0.0, jnp.arange(3.0))[1]
    by_vmap = rng_of().vmap(lambda r, x: r.uniform("a", (2,)))(jnp.arange(3.0))
    rng = rng_of()
    by_at = jax.lax.scan(lambda c, i: (c, rng.at(i).uniform("a", (2,))), 0.0, jnp.arange(3))[1]
    direct = jnp.stack([rng_of().at(i).uniform("a", (2,)) for i in range(3)])
    for other in (by_vmap, by_at, direct):
        np.testing.assert_array_equal(by_scan, other)
    assert len(np.unique(np.asarray(by_scan))) == 6


def test_draws_in_nested_loops_differ_at_every_level():
    def inner(r, c, x):
        return r.scan(lambda r2, c2, y: (c2, r2.uniform("a")), c, jnp.arange(4))

    draws = rng_of().scan(inner, 0.0, jnp.arange(3))[1]
    assert len(np.unique(np.asarray(draws))) == 12


def test_a_draw_that_names_the_inner_of_two_loops_alone_is_refused():
    rng = rng_of()

    def forgetful(x):
        return jax.lax.scan(lambda c, i: (c, rng.at(i).uniform("b")), 0.0, jnp.arange(4))[1] + x

    with pytest.raises(ValueError, match="loop around it"):
        jax.vmap(forgetful)(jnp.zeros(3))


@pytest.mark.parametrize(
    ("run", "match"),
    [
        pytest.param(
            lambda rng: jax.lax.scan(lambda c, i: (c, rng.at(0).uniform("a")), 0.0, jnp.arange(3)),
            "does not come from it",
            id="a loop, and an index from elsewhere",
        ),
        pytest.param(
            lambda rng: jax.vmap(lambda x: rng.once().uniform("b") + x)(jnp.zeros(3)),
            "many times",
            id="vmap, said to be made once",
        ),
        pytest.param(
            lambda rng: jax.lax.scan(lambda c, i: (c, rng.once().uniform("c")), 0.0, jnp.arange(3)),
            "many times",
            id="a loop, said to be made once",
        ),
    ],
)
def test_a_draw_is_refused_that_is_made_in(run, match):
    with pytest.raises(ValueError, match=match):
        run(rng_of())


def test_a_draw_said_to_be_made_once_is_a_bare_draw():
    rng = rng_of()
    value = jax.checkpoint(lambda x: rng.once().uniform("d") + x)(0.0)
    np.testing.assert_array_equal(value, rng_of().uniform("d"))


def drawn():
    """Draws at several sites: both branches of a condition are one draw, and every iteration is one of its own."""
    rng = rng_of()
    rng.uniform("a")
    rng.cond(jnp.array(True), lambda r: r.uniform("b"), lambda r: r.uniform("b") + 1)
    rng.scan(lambda r, c, x: (c, r.uniform("in loop")), 0.0, jnp.arange(2))
    rng.at(0).uniform("c")
    rng.at(1).uniform("c")
    return rng


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(lambda rng: rng.uniform("a"), id="as before"),
        pytest.param(lambda rng: rng.uniform("b"), id="after a branch"),
        pytest.param(lambda rng: rng.cond(jnp.array(True), lambda r: r.uniform("a"), lambda r: 0.0), id="in a branch"),
        pytest.param(
            lambda rng: rng.scan(lambda r, c, x: (c, r.uniform("in loop")), 0.0, jnp.arange(2)), id="in another loop"
        ),
        pytest.param(lambda rng: rng.vmap(lambda r, x: r.uniform("in loop"))(jnp.arange(2)), id="in a vmap"),
        pytest.param(lambda rng: rng.at(jnp.array(1)).uniform("c"), id="in an iteration"),
    ],
)
def test_a_second_draw_at_a_site_is_refused(again):
    rng = drawn()
    with pytest.raises(ValueError, match="drawn twice"):
        again(rng)


def test_a_taken_branch_draws_what_a_bare_draw_would():
    value = rng_of().cond(jnp.array(True), lambda r: r.uniform("a"), lambda r: 0.0)
    np.testing.assert_array_equal(value, rng_of().uniform("a"))


def test_probabilities_of_draws_in_loops_are_those_of_draws_one_by_one():
    p = jnp.array(0.3)

    def flat():
        rng = rng_of(recorder=cal.LogProbability(), rule=cal.Hard())
        draws = jnp.stack([rng.at(i).bernoulli(p, site="a") for i in range(4)])
        return draws, rng.notes

    def scanned():
        rng = rng_of(recorder=cal.LogProbability(), rule=cal.Hard())
        draws = rng.scan(lambda r, c, x: (c, r.bernoulli(p, site="a")), 0.0, jnp.arange(4))[1]
        return draws, rng.notes

    def mapped():
        rng = rng_of(recorder=cal.LogProbability(), rule=cal.Hard())
        draws = rng.vmap(lambda r, x: r.bernoulli(p, site="a"))(jnp.arange(4))
        return draws, rng.notes

    expected = flat()
    for other in (scanned(), mapped()):
        np.testing.assert_array_equal(other[0], expected[0])
        np.testing.assert_allclose(other[1], expected[1], rtol=1e-6)


def test_a_loop_that_would_lose_the_probabilities_of_its_draws_is_refused():
    rng = rng_of(recorder=cal.LogProbability(), rule=cal.Hard())
    with pytest.raises(ValueError, match=r"rng\.scan"):
        jax.lax.scan(lambda c, i: (c, rng.at(i).bernoulli(0.3, site="a")), 0.0, jnp.arange(4))


def test_a_probability_that_is_not_finite_makes_a_draw_that_is_not():
    nan = jnp.array([jnp.nan, 0.5])
    assert np.isnan(rng_of().bernoulli(nan, site="a")[0])
    assert rng_of().bernoulli(nan, site="a", where=jnp.array([0.0, 1.0]))[0] == 0
    assert np.all(np.isnan(rng_of().categorical(jnp.array([jnp.nan, 0.5]), site="b")))


def test_those_who_do_not_decide_have_the_tangent_of_an_event_that_needs_them():
    def draw(w, p):
        return rng_of().bernoulli(p, site="a", where=w)

    w, p = jnp.array([1.0, 0.0, 1.0]), jnp.array([0.2, 0.3, 0.9])
    dw, dp = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.6, 0.7])
    sample, tangent = jax.jvp(draw, (w, p), (dw, dp))
    assert sample[1] == 0
    np.testing.assert_allclose(tangent, p * dw + w * dp, rtol=1e-6)


@pytest.mark.parametrize("bad", [-1, 2**64, jnp.zeros(2)], ids=["negative", "65 bits", "two real numbers"])
def test_a_seed_that_is_no_64_bit_number_is_refused(bad):
    with pytest.raises(ValueError, match="seed"):
        as_seed(bad)


@pytest.mark.parametrize("p", [0.0, 1e-38, 1e-30, 1e-8, 0.5])
def test_relaxations_of_what_hardly_happens_have_finite_derivatives(p):
    u, noise = jnp.asarray(0.3), jnp.asarray([0.1, 0.2])

    def both(p):
        return relaxed_bernoulli(p, u, 0.25) + relaxed_categorical(jnp.stack([p, 1 - p]), noise, 0.25)[0]

    p = jnp.asarray(p)
    assert np.all(np.isfinite([both(p), jax.grad(both)(p), jax.grad(jax.grad(both))(p)]))
