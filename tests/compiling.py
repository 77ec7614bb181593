"""What the compiler is asked to do, and how hard it tries."""

import functools

import jax
from jax._src import compiler
from jax._src.interpreters import mlir

_options_of_jax = compiler.get_compile_options
_new_context = mlir.make_ir_context
#: XLA's preset for fast compilation, kernels without its fusion emitters, and one thread (every core has a worker):
#: together with `jax_disable_most_optimizations` they take less than half of the time.
_QUICK = {
    "xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE",
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def compile_quickly(quickly: bool) -> None:
    """Compile what comes in half the time, to programs that run slower and round elsewhere; or as users do.

    JAX does not compile again what it has, so it is made to forget.
    """
    jax.clear_caches()
    # JAX writes each program in a context of its own, and making one takes longer than writing a small program in it.
    mlir.make_ir_context = functools.cache(_new_context) if quickly else _new_context
    jax.config.update("jax_disable_most_optimizations", quickly)
    compiler.get_compile_options = _options_of_jax
    if quickly:
        compiler.get_compile_options = functools.partial(_quick_options, _known())


def _quick_options(quick, *arguments, env_options_overrides=None, **named):
    return _options_of_jax(*arguments, env_options_overrides=quick | dict(env_options_overrides or {}), **named)


@functools.cache
def _known():
    """Those that this compiler has: some come and go with releases of XLA."""

    def is_known(name):
        try:
            jax.jit(lambda x: x, compiler_options={name: _QUICK[name]}).lower(0.0).compile()
        except jax.errors.JaxRuntimeError as error:
            if name not in str(error):
                raise
            return False
        return True

    return {name: _QUICK[name] for name in _QUICK if is_known(name)}


class no_compilation:
    def __enter__(self):
        self.seen = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self.active = True

    def _listen(self, event, duration, **kwargs):
        if getattr(self, "active", False) and "backend_compile" in event:
            self.seen.append(event)

    def __exit__(self, *exc):
        self.active = False
        assert not self.seen
