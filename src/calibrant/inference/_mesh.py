"""Which mesh of devices: simulations side by side first, and agents divided only as far as memory asks for it."""

import jax

from calibrant._devices import Devices, DevicesError, place
from calibrant._problem import Problem
from calibrant._processes import least
from calibrant._randomness import seeds
from calibrant._simulate import simulate
from calibrant.inference._memory import device_memory
from calibrant.inference._planner import Compiled

#: Agents from which a simulation is compiled to see whether it fits.
_MANY = 100_000


def auto_devices(problem: Problem, simulations: int) -> Devices:
    """All devices, as many along `simulations` as there are simulations side by side and a simulation fits.

    Simulations exchange nothing, so they come first; agents are divided where devices are left over, or where one
    simulation would take more than half of what a device has free. Devices that nothing can be divided over are left
    out.

    **Arguments:** `simulations`, that run side by side in an update.

    **Raises:** `ValueError` where several processes have devices that cannot all take part.
    """
    agents = problem.model.n_agents
    for count in range(len(jax.devices()), 0, -1):
        meshes = [
            Devices(simulations=count // a, agents=a)
            for a in range(1, count + 1)
            if count % a == 0 and count // a <= simulations and (a == 1 or (agents is not None and agents % a == 0))
        ]
        if meshes:
            return next((mesh for mesh in meshes[:-1] if _fits(problem, mesh)), meshes[-1])
        if jax.process_count() > 1:
            break
    raise DevicesError(
        f"{len(jax.devices())} devices cannot be shared by {simulations} simulations of {agents} agents; say how with "
        "devices = { simulations = ..., agents = ... }, and for JUNE lay the world out in `blocks`."
    )


def _fits(problem: Problem, mesh: Devices) -> bool:
    if (problem.model.n_agents or 0) < _MANY:
        return True
    with mesh:
        model = place(problem.model, problem.model.n_agents)
        program = Compiled(
            lambda model, params, inputs, seed: simulate(model, params, seed=seed, steps=problem.steps, inputs=inputs),
            (model, problem.params, problem.inputs, seeds(0, ())),
        )
        free = device_memory()
    return bool(program.arguments + program.memory < least(free // 2))
