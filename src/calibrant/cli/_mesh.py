"""The devices that a command runs on."""

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar

import jax
import typer
from rich.console import Console

from calibrant._config import ConfigError
from calibrant._config._schema import DevicesConfig
from calibrant._devices import Devices, DevicesError
from calibrant._model import AbstractModel
from calibrant._processes import is_first
from calibrant.cli._scratch import remove_scratch

Wanted = Literal["auto"] | DevicesConfig | None
T = TypeVar("T")

DevicesOption = Annotated[str | None, typer.Option("--devices", help="auto, or simulations x agents such as 2x4")]
ProcessesOption = Annotated[int | None, typer.Option("--processes", help="this is one of so many processes")]
ProcessOption = Annotated[int | None, typer.Option("--process", help="and the one of this number, from 0")]
CoordinatorOption = Annotated[
    str | None, typer.Option("--coordinator", help="host:port of process 0, the same for all")
]
JoinOption = Annotated[bool, typer.Option("--join", help="find the other processes under SLURM or Open MPI")]


@dataclasses.dataclass(frozen=True)
class Where:
    """What the command line says of devices and processes.

    **Raises:** `ConfigError` if this process has not joined the others as it was asked to.
    """

    devices: str | None
    processes: int | None
    process: int | None
    coordinator: str | None
    join: bool

    def __post_init__(self):
        _check_processes(self.processes, self.process, self.coordinator, self.join)

    def wanted(self, configured: Wanted = None) -> Wanted:
        """`auto` or `2x4` (simulations x agents); else the configuration's, and `auto` for several processes.

        **Raises:** `ConfigError`.
        """
        if self.devices is None:
            return "auto" if configured is None and jax.process_count() > 1 else configured
        if self.devices == "auto":
            return "auto"
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", self.devices)
        if match is None:
            raise ConfigError(f"--devices is auto, or simulations x agents such as 2x4, got '{self.devices}'.")
        return DevicesConfig(simulations=int(match[1]), agents=int(match[2]))


def build_on(wanted: Wanted, build: Callable[[], T], choose: Callable[[T], Devices | None]) -> tuple[Devices | None, T]:
    """The mesh, `None` where nothing is divided, and what `build` builds: on the mesh, where it is known before.

    **Arguments:** `choose`, which mesh `auto` is for what was built.

    **Raises:** `ConfigError` for more devices than there are and for agents that they cannot share evenly.
    """
    mesh = None
    try:
        if isinstance(wanted, DevicesConfig):
            mesh = Devices(wanted.simulations, wanted.agents)
            mesh.check()
        with on(mesh):  # where every process reads its own part of a world
            built = build()
        if wanted == "auto":
            mesh = choose(built)
            if mesh is not None:
                mesh.check()
        return mesh, built
    except DevicesError as error:
        raise ConfigError(f"devices: {error}") from error


def one_simulation(model: AbstractModel) -> Devices | None:
    """A mesh for a single simulation: the devices that can share its agents evenly, others beside them if they must."""
    agents, there = model.n_agents or 1, len(jax.devices())
    if jax.process_count() == 1:
        return Devices(agents=max(k for k in range(1, there + 1) if agents % k == 0))
    share = max(k for k in range(1, there + 1) if agents % k == 0 and there % k == 0)
    return Devices(simulations=there // share, agents=share)


def say_devices(mesh: Devices | None, quiet: bool = False) -> None:
    """Print what was chosen, on standard error of the first process."""
    if mesh is not None and is_first() and not quiet:
        Console(stderr=True).print(f"devices: {mesh} (simulations x agents), {jax.devices()[0].platform}")


def on(mesh: Devices | None) -> contextlib.AbstractContextManager[Any]:
    """Inside, everything runs on the mesh."""
    return contextlib.nullcontext() if mesh is None else mesh


def _check_processes(processes: int | None, process: int | None, coordinator: str | None, join: bool) -> None:
    """Whether the process has joined the others, as it was asked to.

    **Raises:** `ConfigError`.
    """
    if not join and processes is process is coordinator is None:
        return
    here = jax.process_index(), jax.process_count()
    if not jax.distributed.is_initialized() or (not join and here != (process, processes)):
        raise ConfigError(
            f"this is process {here[0]} of {here[1]}, and not the one asked for; start it by the command `calibrant`, "
            "which joins the others before anything else."
        )


@contextlib.contextmanager
def others_may_end(remedy: str = "start the command again") -> Iterator[None]:
    """Where another process ends, which shows as an error of the programs that they run together, end too."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Of a collective outside a program, the error is a `ValueError` that begins with a status.
        broken = isinstance(error, jax.errors.JaxRuntimeError) or re.match(r"[A-Z_]+: ", str(error))
        if jax.process_count() == 1 or not broken:
            raise
        first_line = str(error).strip().splitlines()[0]
        print(
            f"calibrant: process {jax.process_index()} cannot go on without the others, one of which has ended "
            f"({first_line[:200]}); {remedy}.",
            file=sys.stderr,
            flush=True,
        )
        remove_scratch()
        os._exit(1)  # an ordinary exit would wait for the others first
