"""Incidence: a linear map and its transpose, in both directions of both AD modes, rows side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calibrant.networks import Incidence, random_groups
from calibrant.networks._rows import Venues, sum_rows, take_rows

pytestmark = pytest.mark.usefixtures("x64")
_rng = np.random.default_rng(1)

NETWORKS = {
    "irregular": (_rng.integers(-1, 7, 40), 9),  # agents without a venue, venues without agents
    "sorted": (np.sort(_rng.integers(0, 7, 40)), 9),
    "groups": (np.arange(40) // 6, 7),
    "one venue": (np.zeros(40, int), 1),
    "each alone": (np.arange(40), 40),
    "nobody anywhere": (np.full(40, -1), 3),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    index, n = NETWORKS[request.param]
    network = Incidence(index, n)
    matrix = (np.arange(n)[:, None] == index).astype(float)
    return network, matrix


def test_sum_and_spread_are_the_matrix_and_its_transpose(case):
    network, matrix = case
    x, y = _rng.normal(size=40), _rng.normal(size=matrix.shape[0])
    np.testing.assert_allclose(network.sum(jnp.asarray(x)), matrix @ x, atol=1e-12)
    np.testing.assert_allclose(network.spread(jnp.asarray(y)), matrix.T @ y, atol=1e-12)
    left = np.dot(network.sum(jnp.asarray(x)), y)
    np.testing.assert_allclose(left, np.dot(x, network.spread(jnp.asarray(y))), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev], ids=["forward", "reverse"])
def test_derivatives_of_sums_over_venues_are_right_in_both_modes(case, mode):
    network, matrix = case
    x, y = jnp.zeros(40), jnp.zeros(matrix.shape[0])
    np.testing.assert_array_equal(mode(network.sum)(x), matrix)
    np.testing.assert_array_equal(mode(network.spread)(y), matrix.T)
    of_others = matrix.T @ matrix - np.diag(matrix.sum(0))
    np.testing.assert_allclose(mode(network.sum_of_others)(x), of_others, atol=1e-12)


@pytest.mark.parametrize("axis", [0, -1], ids=["first axis", "last axis"])
def test_sums_over_venues_are_the_same_under_vmap(case, axis):
    network, matrix = case
    x = jnp.asarray(_rng.normal(size=(40, 3)))
    mapped = jax.vmap(network.sum, in_axes=axis, out_axes=-1)(x if axis == -1 else x.T)
    np.testing.assert_allclose(mapped, matrix @ np.asarray(x), atol=1e-12)
    twice = jax.vmap(jax.vmap(network.sum))(jnp.stack([x.T, 2 * x.T]))
    np.testing.assert_allclose(twice[1], 2 * (matrix @ np.asarray(x)).T, atol=1e-12)


def _primitives(function, *arguments):
    return {str(equation.primitive) for equation in jax.make_jaxpr(function)(*arguments).eqns}


def test_no_direction_of_a_sum_over_venues_is_a_scatter():
    """Sums stay sums over known indices, and gathers gathers, whatever is differentiated or mapped."""
    index = jnp.asarray(np.sort(_rng.integers(0, 7, 40)).astype(np.int32))

    def spread(y):
        return take_rows(y, index, Venues(7, is_sorted=True))

    def add(x):
        return sum_rows(x, index, Venues(7, is_sorted=True))

    rows = {"calibrant_sum_rows", "calibrant_take_rows"}
    for function, of in ((spread, 7), (add, 40)):
        for made in (
            lambda x, f=function: jax.vjp(f, x)[1](f(x)),
            lambda x, f=function: jax.jvp(f, (x,), (x,)),
            jax.vmap(function, in_axes=-1, out_axes=-1),
        ):
            shape = (of, 3) if made.__name__ == function.__name__ else (of,)
            used = _primitives(made, jnp.ones(shape))
            assert used & rows
            assert not {p for p in used if "scatter" in p or "gather" in p}


def test_sums_are_right_where_every_element_of_vmap_has_venues_of_its_own():
    x, index = jnp.ones((2, 4)), jnp.asarray([[0, 0, 1, 1], [1, 1, 1, 5]], dtype=jnp.int32)
    out = jax.vmap(lambda x, i: sum_rows(x, i, Venues(2, is_sorted=True)))(x, index)
    assert out.tolist() == [[2, 2], [0, 3]]


def test_venues_know_their_sizes_and_average_over_the_others():
    network = Incidence(np.array([0, 0, 0, 2, -1]), 3)
    assert network.sizes.tolist() == [3, 0, 1]
    assert network.n_agents == 5
    np.testing.assert_allclose(network.mean_of_others(jnp.asarray([1.0, 0, 0.5, 7, 9])), [0.25, 0.75, 0.5, 0, 0])


def test_groups_are_known_to_be_of_one_size_where_their_members_are_contiguous():
    assert random_groups(10, 4, contiguous=True).venues.group_size == 4
    assert random_groups(10, 4, seed=1).venues.group_size is None
