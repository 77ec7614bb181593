"""What is used of JAX, and of Equinox, beyond their stable interfaces. Nothing else in the package reaches there.

Each of these may change with any release. `tests/test_jax.py` says what is expected of each, so that an upgrade that
changes one fails there, by its name.
"""

from collections.abc import Callable
from typing import Any

import jax
from equinox.internal import nondifferentiable
from jax.core import ShapedArray, Tracer
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather, sync_global_devices
from jax.extend.core import Primitive, get_opaque_trace_state
from jax.interpreters import ad, batching, mlir

__all__ = [
    "Primitive",
    "ShapedArray",
    "Tracer",
    "broadcast_one_to_all",
    "define",
    "is_refusal_of_options",
    "is_repeated",
    "is_unknown_option",
    "is_zero",
    "nondifferentiable",
    "parent_of",
    "place_of_trace",
    "process_allgather",
    "sync_global_devices",
    "trace_at",
    "trace_of",
    "zero_of",
]


# Where a function is being traced ----------------------------------------------------------------------------------


def place_of_trace() -> Any:
    """The innermost transformation that is tracing here. Two places are equal if no other began or ended in between."""
    return get_opaque_trace_state()


def trace_at(place: Any) -> Any:
    """The trace of a place, which is that of the numbers that come from it; `None` once it has ended."""
    return place._trace_ref()


def trace_of(x: Any) -> Any:
    """The trace that a number belongs to; `None` for one that is known."""
    return getattr(x, "_trace", None)


def parent_of(trace: Any) -> Any:
    """The trace around a trace of `vmap` or a derivative; `None` of others."""
    return getattr(trace, "parent_trace", None)


def is_repeated(trace: Any) -> bool:
    """Whether a trace is of the body of a loop or of `vmap`, as far as JAX says what it traces for."""
    if type(trace).__name__ == "BatchTrace":
        return True
    info = getattr(getattr(trace, "frame", None), "debug_info", None)
    return any(loop in str(getattr(info, "traced_for", "")) for loop in ("scan", "while", "fori", "map"))


# Primitives --------------------------------------------------------------------------------------------------------


def define(
    primitive: Primitive,
    impl: Callable[..., Any],
    *,
    static: tuple[str, ...],
    abstract: Callable[..., Any],
    jvp: Callable[..., Any],
    transpose: Callable[..., Any] | None,
    batch: Callable[..., Any],
) -> None:
    """Tell JAX everything about a primitive. `transpose` is of one that is linear in its first argument."""
    primitive.def_impl(jax.jit(impl, static_argnames=static))
    primitive.def_abstract_eval(abstract)
    ad.primitive_jvps[primitive] = jvp
    if transpose is not None:
        ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=False))


def is_zero(tangent: Any) -> bool:
    """Whether a tangent or cotangent is known to be zero, and no array was made of it."""
    return isinstance(tangent, ad.Zero)


def zero_of(out: Any) -> Any:
    """A tangent of `out` that is known to be zero."""
    return ad.Zero.from_primal_value(out)  # pyright: ignore[reportAttributeAccessIssue]


# What the compiler says --------------------------------------------------------------------------------------------


def is_refusal_of_options(error: ValueError) -> bool:
    """Whether JAX refused options of the compiler because the program runs within another one."""
    return "can only be passed to top-level" in str(error)


def is_unknown_option(error: Exception) -> bool:
    """Whether the compiler does not know an option."""
    return "option" in str(error)
