"""Programs as they are compiled for a calibration."""

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import equinox as eqx
import jax

from calibrant._devices import gathered
from calibrant._jax import Tracer, is_refusal_of_options, is_unknown_option

P = ParamSpec("P")
R = TypeVar("R")

#: Where numbers are shared along an axis, or one has length one, as with one replicate, YNNPACK writes out all that
#: stands in a sum. That takes several times as long (`benchmarks/sums.py`), and memory that the compiler's account, on
#: which the planner relies, leaves out.
_NO_KERNELS = {"xla_cpu_experimental_ynn_fusion_type": ""}


class Program(Generic[P, R]):
    """`eqx.filter_jit`, without a library's kernels for sums, of which every process can read whatever it gives back.

    JAX takes options of the compiler for the outermost program only, so within another it has none.
    """

    def __init__(self, fn: Callable[P, R]):
        functools.update_wrapper(self, fn)
        self._fn = fn

    @functools.cached_property
    def _jitted(self) -> Any:
        return self._jit(compiler_options=compiler_options())

    @functools.cached_property
    def _within(self) -> Any:
        return self._jit()

    def _jit(self, **options: Any) -> Any:
        jit: Any = eqx.filter_jit

        @functools.wraps(self._fn)
        def whole(*arguments: P.args, **named: P.kwargs) -> R:
            return gathered(self._fn(*arguments, **named))

        return jit(whole, **options)

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((arguments, named))):
            return self._within(*arguments, **named)
        try:
            return self._jitted(*arguments, **named)
        except ValueError as error:  # JAX does not tell otherwise whether this is within another program
            if not is_refusal_of_options(error):
                raise
            return self._within(*arguments, **named)

    def lower(self, *arguments: P.args, **named: P.kwargs) -> Any:
        """As of `jax.jit`."""
        return self._jitted.lower(*arguments, **named)


def compiled(fn: Callable[P, R]) -> Program[P, R]:
    """As a decorator: a `Program`."""
    return Program(fn)


def compiler_options() -> dict[str, Any]:
    """Options of `jax.jit` with which a calibration's programs are compiled, for a program of your own:

    ```python
    step = jax.jit(step, compiler_options=cal.compiler_options())
    ```

    On a CPU, XLA hands sums over many agents, and what stands in them, to the library YNNPACK; with these it sums in
    one loop. See [On a CPU](../devices.md#on-a-cpu). JAX takes them for the outermost `jax.jit` only.

    **Returns:** names and values; none where the compiler does not know them.
    """
    return dict(_NO_KERNELS) if _known() else {}


@functools.cache
def _known() -> bool:
    """Asked when a program first runs, and not at the import: processes are joined before devices are looked at."""
    try:
        jax.jit(lambda x: x, compiler_options=_NO_KERNELS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_unknown_option(error):
            raise
        return False
    return True
