"""What is expected of the parts of JAX that are no stable interface. An upgrade that changes one fails here."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calibrant import _jax

SOURCE = Path(_jax.__file__).parent
#: Modules of JAX and Equinox without a promise to stay as they are.
UNSTABLE = ("jax._src", "jax.core", "jax.extend", "jax.interpreters", "jax.experimental", "jax.lib", "equinox.internal")


def test_one_file_alone_reaches_beyond_the_stable_interface_of_jax():
    found = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [f"{node.module}.{a.name}" for a in node.names] if isinstance(node, ast.ImportFrom) else []
            unstable = [n for n in names if any(n == u or n.startswith(f"{u}.") for u in UNSTABLE)]
            if unstable:
                found[str(path.relative_to(SOURCE))] = unstable
    assert list(found) == ["_jax.py"], found


def test_a_place_of_tracing_is_equal_to_itself_and_to_no_other():
    outside, inside = _jax.place_of_trace(), []

    def body(x):
        inside.append((_jax.place_of_trace(), _jax.place_of_trace()))
        return x

    jax.vmap(body)(jnp.ones(2))
    ((one, again),) = inside
    assert one == again
    assert one != outside
    assert _jax.place_of_trace() == outside


def test_a_traced_number_belongs_to_the_trace_of_its_place():
    seen = []

    def body(x):
        seen.append(_jax.trace_of(x) is _jax.trace_at(_jax.place_of_trace()))
        assert isinstance(x, _jax.Tracer)
        return x

    jax.vmap(body)(jnp.ones(2))
    jax.jit(body)(1.0)
    jax.lax.scan(lambda carry, x: (carry, body(x)), 0.0, jnp.ones(2))
    assert seen == [True] * 3
    assert _jax.trace_of(jnp.ones(2)) is None


def test_the_trace_around_a_vmap_is_known():
    seen = []

    def inner(x):
        seen.append(_jax.parent_of(_jax.trace_of(x)) is outer_trace[0])
        return x

    outer_trace = []

    def outer(x):
        outer_trace[:] = [_jax.trace_of(x)]
        return jax.vmap(inner)(x)

    jax.vmap(outer)(jnp.ones((2, 3)))
    assert seen == [True]


def _loop(kind, body):
    x = jnp.arange(3.0)
    match kind:
        case "vmap":
            return jax.vmap(body)(x)
        case "scan":
            return jax.lax.scan(lambda carry, x: (carry, body(x)), 0.0, x)
        case "map":
            return jax.lax.map(body, x)
        case "fori_loop":
            return jax.lax.fori_loop(0, 3, lambda i, c: body(c), 0.0)
        case "while_loop":
            return jax.lax.while_loop(lambda c: c < 3, lambda c: body(c) + 1, 0.0)
        case "jit":
            return jax.jit(body)(x)
        case "cond":
            return jax.jit(lambda p, x: jax.lax.cond(p, body, lambda x: x, x))(True, x)
        case "checkpoint":
            return jax.checkpoint(body)(x)
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "repeated"),
    [(k, True) for k in ("vmap", "scan", "map", "fori_loop", "while_loop")]
    + [(k, False) for k in ("jit", "cond", "checkpoint")],
)
def test_the_body_of_a_loop_is_told_from_a_block_that_runs_once(kind, repeated):
    seen = []

    def body(x):
        seen.append(_jax.is_repeated(_jax.trace_at(_jax.place_of_trace())))
        return x

    _loop(kind, body)
    assert set(seen) == {repeated}


double_p = _jax.Primitive("calibrant_test_double")
_jax.define(
    double_p,
    lambda x: 2 * x,
    static=(),
    abstract=lambda x: _jax.ShapedArray(x.shape, x.dtype),
    jvp=lambda primals, tangents: (
        double_p.bind(*primals),
        _jax.zero_of(primals[0]) if _jax.is_zero(tangents[0]) else double_p.bind(tangents[0]),
    ),
    transpose=lambda cotangent, x: (double_p.bind(cotangent),),
    batch=lambda args, dims: (double_p.bind(args[0]), dims[0]),
)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: f,
        jax.jit,
        lambda f: lambda x: jax.vmap(f)(x[None])[0],
        lambda f: lambda x: jax.jvp(f, (x,), (x,))[1],
        lambda f: lambda x: jax.vjp(f, x)[1](x)[0],
        lambda f: lambda x: jax.linearize(lambda y: f(y) + f(jax.lax.stop_gradient(y)), x)[1](x),
    ],
    ids=["eager", "jit", "vmap", "jvp", "vjp", "a tangent of zero"],
)
def test_a_primitive_is_known_to_every_transformation(transform):
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(transform(double_p.bind)(x), 2 * x)


def test_one_process_agrees_with_itself():
    np.testing.assert_array_equal(_jax.broadcast_one_to_all(np.ones(3)), np.ones(3))
    np.testing.assert_array_equal(np.ravel(_jax.process_allgather(np.ones(3))), np.ones(3))
    _jax.sync_global_devices("here")


def test_options_of_the_compiler_are_refused_within_another_program_in_known_words():
    inner = jax.jit(lambda x: x + 1, compiler_options={"xla_cpu_enable_fast_math": False})
    with pytest.raises(ValueError, match="compiler_options") as refused:
        jax.jit(lambda x: inner(x))(1.0)
    assert _jax.is_refusal_of_options(refused.value)


def test_an_unknown_option_of_the_compiler_is_refused_in_known_words():
    program = jax.jit(lambda x: x, compiler_options={"xla_no_such_option": ""})
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        program.lower(0.0).compile()
    assert _jax.is_unknown_option(refused.value)


def test_a_tangent_where_none_is_allowed_is_refused_in_the_words_given():
    with pytest.raises(Exception, match="no parameter here"):
        jax.grad(lambda x: _jax.nondifferentiable(x, msg="no parameter here"))(1.0)
