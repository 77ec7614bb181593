"""`TorchModel`: a simulator written in PyTorch, with the derivatives that PyTorch takes."""

import contextlib
import datetime
import functools
import importlib
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from calibrant._model import Params
from calibrant.black_box._failures import Failed, Failures
from calibrant.black_box._foreign import (
    AbstractForeignModel,
    AbstractRuns,
    as_type,
    checked_dates,
    failures_kept,
    named,
    output_shapes,
    rows,
)
from calibrant.black_box._parameters import params_class
from calibrant_worker import RunFailed, checked_outputs


class TorchModel(AbstractForeignModel):
    """A simulator in PyTorch as a model. Its gradients are those of `torch.autograd`, by reverse mode.

    Everything outside of the simulator stays in JAX: priors, losses, flows, methods. A gradient is asked for with the
    derivative of the loss in the outputs, and costs a second simulation and its backward pass. Simulations are made one
    after the other, in this process, with PyTorch's own threads. Needs the extra `calibrant[torch]`.

    **Arguments:**

    - `run`: a function `run(params, seed)`. `params` maps names to tensors of JAX's default float type on `device`;
      `seed` is an integer from 0 to 2^31 - 1, with which PyTorch's global generators are seeded already. It returns its
      outputs by name, or the one output, as tensors. What discrete draws are to contribute to the derivative is up
      to it: `torch.nn.functional.gumbel_softmax(..., hard=True)`, say.
    - `parameters`, `outputs`, `keep_errors_in`, `most_kept`, `dates`: as of `BlackBox`.
    - `device`: of PyTorch, such as `"cpu"` or `"cuda"`.

    A run fails if it raises or returns what was not declared or is not finite, and a gradient if it is not finite or if
    no output depends on a parameter by differentiable operations. What failed is NaN and left out; runs and gradients
    are counted apart, and the first failure of each is logged as a warning (logger `calibrant`).

    **Raises:** `ValueError` where PyTorch or the device is not there, and for outputs and parameters that are none.
    """

    parameters: type[Params] = eqx.field(static=True)
    runs: "_Runs" = eqx.field(static=True)
    calendar: tuple[datetime.date, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        run: Any,
        *,
        parameters: "type[Params] | Mapping[str, Any]",
        outputs: "Mapping[str, Any] | Sequence[int] | int",
        device: str = "cpu",
        keep_errors_in: "str | Path | None" = None,
        most_kept: int = 20,
        dates: Sequence[datetime.date] | None = None,
    ):
        self.parameters = params_class(parameters)
        if not callable(run):
            raise ValueError(f"TorchModel takes a function run(params, seed), got {run!r}.")
        failures = failures_kept("TorchModel", keep_errors_in, most_kept)
        self.runs = _Runs(run, output_shapes(outputs), _device(device), failures)
        self.calendar = checked_dates(self, dates)

    def make(self, params, words):
        made: Any = _run(self.runs, named(params), words)
        return made


def _device(name: str) -> Any:
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        raise ValueError("TorchModel needs PyTorch: pip install 'calibrant[torch]'.") from None
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"TorchModel: PyTorch has no device '{name}' here ({str(error).splitlines()[0]}).") from error
    return device


_one_at_a_time = threading.Lock()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(runs: "_Runs", params: dict[str, Array], words: UInt32[Array, "2"]) -> dict[str, Array]:
    dtype = jnp.result_type(float)
    shapes = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in runs.shapes.items()}
    return jax.pure_callback(functools.partial(runs.outputs, dtype), shapes, params, words, vmap_method="broadcast_all")


def _forward(runs: "_Runs", params: Any, words: Any) -> tuple[Any, Any]:
    return _run(runs, params, words), (params, words)


def _backward(runs: "_Runs", kept: Any, cotangents: Any) -> tuple[Any, None]:
    params, words = kept
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    gradients = jax.pure_callback(runs.gradients, shapes, params, words, cotangents, vmap_method="broadcast_all")
    return gradients, None


_run.defvjp(_forward, _backward)


class _Runs(AbstractRuns):
    """Makes runs, and their derivatives, one after the other."""

    def __init__(
        self, function: Callable[..., Any], shapes: dict[str, tuple[int, ...]], device: Any, failures: Failures
    ):
        self._function, self._device = function, device
        self.shapes, self.failures = shapes, failures

    def outputs(self, dtype: Any, params: dict[str, Any], words: Any) -> dict[str, np.ndarray]:
        given, seeds, batch = rows(params, words)
        out = {name: np.full((len(given), *shape), np.nan, dtype) for name, shape in self.shapes.items()}
        failed: list[Failed] = []
        try:
            for i, (values, seed) in enumerate(zip(given, seeds, strict=True)):
                with _caught(failed, values, seed), self._ready(seed, derivative=False):
                    for name, x in as_type(self._made(self._tensors(values, dtype), seed)[1], dtype).items():
                        out[name][i] = x
        finally:
            self.failures.add(len(given), failed)
        return {name: x.reshape(*batch, *x.shape[1:]) for name, x in out.items()}

    def gradients(self, params: dict[str, Any], words: Any, cotangents: dict[str, Any]) -> dict[str, np.ndarray]:
        given, seeds, batch = rows(params, words)
        count = len(given)
        like = {name: np.asarray(x) for name, x in params.items()}
        out = {name: np.full((count, *x.shape[len(batch) :]), np.nan, x.dtype) for name, x in like.items()}
        pulled = {k: np.asarray(x).reshape(count, *np.shape(x)[len(batch) :]) for k, x in cotangents.items()}
        failed: list[Failed] = []
        try:
            for i, (values, seed) in enumerate(zip(given, seeds, strict=True)):
                pull = {name: x[i] for name, x in pulled.items()}
                if not all(np.all(np.isfinite(x)) for x in pull.values()):
                    continue  # the run failed, which was noted, or its loss was not finite
                with _caught(failed, values, seed), self._ready(seed, derivative=True):
                    for name, x in self._pulled_back(values, seed, pull).items():
                        out[name][i] = x
        finally:
            self.failures.add_gradients(failed)
        return {name: x.reshape(like[name].shape) for name, x in out.items()}

    def _pulled_back(self, values: dict[str, Any], seed: int, pull: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        torch: Any = importlib.import_module("torch")
        dtype = next(iter(pull.values())).dtype
        leaves = self._tensors(values, dtype)
        for x in leaves.values():
            x.requires_grad_()
        try:  # on copies, which the function may change in place
            made, _ = self._made({name: x.clone() for name, x in leaves.items()}, seed)
        except (Exception, SystemExit):
            if self._fails(values, dtype, seed):
                return {}  # noted when the run was made
            raise
        moving = {name: y for name, y in made.items() if y.requires_grad}
        if not moving:
            raise RunFailed("no output depends on a parameter by differentiable operations of PyTorch")
        weights = [torch.as_tensor(pull[k].copy(), dtype=y.dtype, device=y.device) for k, y in moving.items()]
        found = torch.autograd.grad(
            list(moving.values()),
            list(leaves.values()),
            [w.reshape(y.shape) for w, y in zip(weights, moving.values(), strict=True)],
            allow_unused=True,
            materialize_grads=True,
        )
        out = {name: g.detach().cpu().numpy() for name, g in zip(leaves, found, strict=True)}
        for name, g in out.items():
            if not np.all(np.isfinite(g)):
                raise RunFailed(f"the gradient in '{name}' is not finite")
        return out

    def _fails(self, values: dict[str, Any], dtype: Any, seed: int) -> bool:
        """Whether a run goes wrong without derivatives too."""
        torch: Any = importlib.import_module("torch")
        torch.manual_seed(seed)
        with torch.no_grad():
            try:
                self._made(self._tensors(values, dtype), seed)
            except (Exception, SystemExit):
                return True
        return False

    def _tensors(self, values: dict[str, Any], dtype: Any) -> dict[str, Any]:
        torch: Any = importlib.import_module("torch")
        kind = torch.float64 if np.dtype(dtype) == np.float64 else torch.float32
        return {name: torch.tensor(x, dtype=kind, device=self._device) for name, x in values.items()}

    def _made(self, tensors: dict[str, Any], seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The tensors that a run returns, by name, and their checked numbers."""
        torch: Any = importlib.import_module("torch")
        made = self._function(tensors, seed)
        by_name = dict(made) if isinstance(made, Mapping) else {"": made}
        tensor = torch.Tensor
        numbers = {k: y.detach().cpu().numpy() if isinstance(y, tensor) else y for k, y in by_name.items()}
        checked = checked_outputs(numbers if isinstance(made, Mapping) else numbers[""], self.shapes)
        return {k: y for k, y in by_name.items() if k in self.shapes and isinstance(y, tensor)}, checked

    @contextlib.contextmanager
    def _ready(self, seed: int, *, derivative: bool) -> Iterator[None]:
        """PyTorch's generators seeded, and afterwards as they were."""
        torch: Any = importlib.import_module("torch")
        devices = [self._device] if self._device.type == "cuda" else []
        # Generators and their state are those of the whole process.
        with _one_at_a_time, torch.random.fork_rng(devices=devices), torch.set_grad_enabled(derivative):
            torch.manual_seed(seed)
            yield


@contextlib.contextmanager
def _caught(failed: list[Failed], values: dict[str, Any], seed: int) -> Iterator[None]:
    """A run that goes wrong is noted."""
    try:
        yield
    except RunFailed as error:
        failed.append((values, seed, " ".join(str(error).split()), error.details))
    except (Exception, SystemExit) as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        failed.append((values, seed, message, traceback.format_exc()))
