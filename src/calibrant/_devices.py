"""Devices: a mesh with two axes, simulations and agents, over which one program is divided.

Nothing of a model says where it runs. Arrays of agents are divided over the axis `agents`, rows of parameter values
over `simulations`, and the compiler's partitioner does the rest; only sums over venues are ours (`networks._rows`).
Whatever is added up over agents in a simulation is exact (integers, or `Incidence.sum`), so that decisions do not
depend on the mesh.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from calibrant._jax import Tracer

AGENTS, SIMULATIONS = "agents", "simulations"


class DevicesError(ValueError):
    """Devices that are not there, or that cannot share what they are to share."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """A mesh of `simulations` times `agents` devices: a context manager, inside which everything runs on them.

    ```python
    with cal.Devices(agents=8):
        calibration = cal.calibrate(problem)
    ```

    Along `simulations` nothing is exchanged but losses and their gradients: take it first, as far as the number of
    simulations side by side goes. Along `agents` a simulation is divided, which also divides its memory.

    **Raises:** `ValueError` for more devices than there are.
    """

    simulations: int = 1
    agents: int = 1

    def __post_init__(self):
        for name in (SIMULATIONS, AGENTS):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DevicesError(f"Devices need `{name}` to be a whole number >= 1, got {value!r}.")

    @property
    def count(self) -> int:
        """Of all devices."""
        return self.simulations * self.agents

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh, over the first `count` devices of all processes.

        **Raises:** `ValueError` if there are fewer, or if a process had no part in it.
        """
        there = jax.devices()
        if self.count > len(there):
            raise DevicesError(
                f"{self.simulations} x {self.agents} devices were asked for and there are {len(there)} "
                f"({there[0].platform}); on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight."
            )
        if jax.process_count() > 1 and self.count != len(there):
            raise DevicesError(
                f"{jax.process_count()} processes have {len(there)} devices, and each of them must take part; "
                f"{self.simulations} x {self.agents} is {self.count}."
            )
        grid = np.asarray(there[: self.count]).reshape(self.simulations, self.agents)
        return jax.sharding.Mesh(grid, (SIMULATIONS, AGENTS), axis_types=(AxisType.Auto,) * 2)

    def __enter__(self) -> "Devices":
        _entered.append(jax.set_mesh(self.mesh))
        _entered[-1].__enter__()
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        _entered.pop().__exit__(kind, value, traceback)

    def check(self) -> None:
        """Refuse, with a `ValueError`, more devices than there are."""
        _ = self.mesh

    def __str__(self) -> str:
        return f"{self.simulations}x{self.agents}"


_entered: list[contextlib.AbstractContextManager] = []


def shards(axis: str) -> int:
    """Devices along an axis of the mesh in use; 1 without one."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def _constrained(x: Any, axis: str) -> Any:
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axis, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))


def divide_agents(tree: PyTree, agents: int | None) -> PyTree:
    """Inside a program: arrays with a leading axis of `agents` divided over the mesh."""
    if agents is None or shards(AGENTS) == 1:
        return tree
    return jax.tree.map(lambda x: _constrained(x, AGENTS) if _is_of(x, agents) else x, tree)


def divide_simulations(seeds: Array) -> Array:
    """Inside a program: seeds of shape (batch, replicates, 2) divided over the mesh, and so what is made from them."""
    if shards(SIMULATIONS) == 1:
        return seeds
    if seeds.shape[0] >= shards(SIMULATIONS):
        return _constrained(seeds, SIMULATIONS)
    return jnp.swapaxes(_constrained(jnp.swapaxes(seeds, 0, 1), SIMULATIONS), 0, 1)


def gathered(tree: PyTree) -> PyTree:
    """Inside a program: what it gives back, whole on every device, so that any process can read it."""
    if shards(SIMULATIONS) * shards(AGENTS) == 1:
        return tree
    whole = PartitionSpec()
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, whole) if eqx.is_array(x) else x, tree)


def divided_array(length: int, part: Callable[[slice], np.ndarray]) -> Array:
    """An array of agents, of which every process makes the parts that its own devices hold.

    **Arguments:** `length`; `part`, from a slice of agents to their numbers.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or length % shards(AGENTS):
        return jnp.asarray(part(slice(None)))
    sharding = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(AGENTS))
    return jax.make_array_from_callback((length,), sharding, lambda where: part(where[0] if where else slice(None)))


def place(tree: PyTree, agents: int | None) -> PyTree:
    """Outside a program: arrays with a leading axis of `agents` divided over the mesh, others whole on every device.

    **Raises:** `ValueError` if agents cannot be divided evenly.
    """
    if jax.sharding.get_abstract_mesh().size <= 1:
        return tree
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError:  # inside a program after all
        return tree
    _check(agents, shards(AGENTS))

    def put(x: Any) -> Any:
        if not eqx.is_array(x) or isinstance(x, Tracer):
            return x
        spec = PartitionSpec(AGENTS) if _is_of(x, agents) else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        if jax.process_count() == 1 or (isinstance(x, jax.Array) and not x.is_fully_addressable):
            return jax.device_put(x, sharding)
        here = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda where: here[where])

    return jax.tree.map(put, tree)


def _is_of(x: Any, agents: int | None) -> bool:
    return agents is not None and getattr(x, "ndim", 0) > 0 and x.shape[0] == agents


def _check(agents: int | None, devices: int) -> None:
    if devices > 1 and agents is None:
        raise DevicesError(
            "This model does not say how many agents it has (`n_agents`), so it cannot be divided over devices; "
            "divide the simulations: Devices(simulations=...)."
        )
    if agents is not None and agents % devices:
        raise DevicesError(
            f"{agents:,} agents cannot be divided evenly over {devices} devices; choose a divisor of them, or "
            "for JUNE a world laid out in as many blocks (`blocks`)."
        )
