"""`simulate`: a model, parameters and a seed to a trajectory."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from calibrant._autodiff import AbstractMode, ReverseMode
from calibrant._devices import gathered, place
from calibrant._horizon import AbstractHorizon, FullHorizon
from calibrant._jax import nondifferentiable
from calibrant._loop import Loop
from calibrant._model import AbstractModel, no_derivative, not_in_jax
from calibrant._randomness import as_seed
from calibrant._recording import AbstractRecorder
from calibrant._sampling import AbstractSamplingPlan, Hard, StraightThrough


class Trajectory(eqx.Module):
    """What a simulation gives back.

    `outputs`: `model.summarise` of `observed`, which is what `observe` returned after each of the steps (leading axis:
    time). `notes`: what the recorder noted of all discrete draws at times 0 (`init`), 1, ..., steps; `None` without
    one.
    """

    outputs: PyTree[Array]
    observed: PyTree[Array]
    notes: PyTree[Array] | None


def _refuse_tangent(path: Any, leaf: Any, what: str) -> Any:
    if not eqx.is_inexact_array(leaf):
        return leaf
    name = f"{what}{jax.tree_util.keystr(path)}"
    return nondifferentiable(
        leaf,
        msg=f"simulate was differentiated with respect to {name}, which is no parameter; declare it in the model's "
        "Params, or stop its gradient.",
    )


def _guard(tree: PyTree, what: str) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _refuse_tangent(path, leaf, what), tree)


def resolve_inputs(model: AbstractModel, inputs: PyTree, steps: int | None) -> PyTree[Array]:
    """`inputs`, or the first `steps` of the model's own."""
    if inputs is None and model.default_inputs is not None:
        return jax.tree.map(lambda x: jnp.asarray(x)[:steps], model.default_inputs)
    return jax.tree.map(jnp.asarray, inputs)


def resolve_steps(model: AbstractModel, inputs: PyTree, steps: int | None) -> int:
    """The number of steps, from `steps`, the leading axis of `inputs`, or the model's default.

    **Raises:** `ValueError` where they disagree or none says.
    """
    lengths = {leaf.shape[0] if getattr(leaf, "ndim", 0) else None for leaf in jax.tree.leaves(inputs)}
    if None in lengths or len(lengths) > 1:
        raise ValueError("Every array of `inputs` needs the same leading axis of time.")
    if steps is None:
        steps = lengths.pop() if lengths else model.default_steps
    elif lengths and lengths != {steps}:
        raise ValueError(f"`inputs` cover {lengths.pop()} steps but steps={steps} were asked for.")
    if steps is None or steps < 1:
        raise ValueError(f"{type(model).__name__} needs `steps` (a whole number >= 1) or `inputs`, got {steps}.")
    return steps


def check_mode(mode: Any) -> None:
    """Refuse what is no mode.

    **Raises:** `ValueError`.
    """
    if not isinstance(mode, AbstractMode):
        raise ValueError(
            f"`mode` is one of ReverseMode(), CheckpointedReverseMode(...) and HybridMode(...), got "
            f"{type(mode).__name__ if isinstance(mode, eqx.Module) else repr(mode)}; a planner chooses among them in a "
            "calibration only, GVI(mode=AutoMode())."
        )


def simulate(
    model: AbstractModel,
    params: Any,
    *,
    seed: int | Array,
    steps: int | None = None,
    inputs: Any = None,
    rule: AbstractSamplingPlan | None = None,
    mode: AbstractMode | None = None,
    horizon: AbstractHorizon | None = None,
    recorder: AbstractRecorder | None = None,
) -> Trajectory:
    """Run a model.

    **Arguments:**

    - `model`, `params`: the model and an instance of its `Params`, the one thing that can be differentiated.
    - `seed`: an integer, or two `uint32` words; equal seeds draw equal numbers whatever the parameters.
    - `steps`: how many; by default the length of `inputs`, else the model's own default. Of a model's own inputs the
      first so many are used.
    - `inputs`: arrays with a leading time axis, a slice of which each step receives.
    - `rule`: how discrete draws are realised and differentiated; straight-through by default.
    - `mode`, `horizon`: how, and along which paths, derivatives are taken; `ReverseMode()` and `FullHorizon()`.
    - `recorder`: what to note of every discrete draw; `LogProbability()` notes just that.

    A simulator outside of JAX (`BlackBox`, `TorchModel`) takes none of the last four.

    **Returns:** a `Trajectory`.

    **Raises:** `ValueError` for a model whose step changes the shape of its state, for a draw that would repeat
    itself and for a mode that is none; `RuntimeError` for a tangent on a float input that is no parameter.
    """
    rule = StraightThrough() if rule is None else rule
    mode = ReverseMode() if mode is None else mode
    horizon = FullHorizon() if horizon is None else horizon
    check_mode(mode)
    if not isinstance(params, model.Params):
        raise ValueError(
            f"{type(model).__name__} takes parameters of class {model.Params.__qualname__}, "
            f"got {type(params).__name__}."
        )
    if recorder is not None and not rule.hard:
        raise ValueError(
            f"{type(rule).__name__} draws relaxed samples, which have no probability to record; use Hard()."
        )
    if recorder is not None and not model.differentiable:
        raise ValueError(no_derivative(model))
    if not model.in_jax:
        for given, plain in (
            (rule, (Hard, StraightThrough)),
            (mode, ReverseMode),
            (horizon, FullHorizon),
            (recorder, type(None)),
        ):
            if not isinstance(given, plain):
                raise ValueError(not_in_jax(model, type(given).__name__))
    inputs = resolve_inputs(model, inputs, steps)
    steps = resolve_steps(model, inputs, None if steps is None else int(steps))
    model = place(model, model.n_agents)
    return _simulate(model, params, as_seed(seed), steps, inputs, rule, mode, horizon, recorder)


@eqx.filter_jit
def _simulate(
    model: AbstractModel,
    params: Any,
    seed: Array,
    steps: int,
    inputs: PyTree[Array],
    rule: AbstractSamplingPlan,
    mode: AbstractMode,
    horizon: AbstractHorizon,
    recorder: AbstractRecorder | None,
) -> Trajectory:
    rule, recorder = _guard(rule, "rule"), _guard(recorder, "recorder")
    loop = Loop(_guard(model, "model"), _guard(inputs, "inputs"), seed, rule, steps, recorder)
    observed, notes = mode.run(params, loop, _guard(horizon, "horizon"))
    outputs = jax.tree.map(jnp.asarray, model.summarise(params, observed))
    return gathered(Trajectory(outputs, observed, None if recorder is None else notes))
