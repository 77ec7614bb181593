"""The devices that a command runs on."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax

from calibrant._config import ConfigError
from calibrant._config._schema import DevicesConfig
from calibrant._devices import Devices
from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant.cli._unfinished import remove_scratch
from calibrant.inference import AbstractMethod, auto_devices

Wanted = Literal["auto"] | DevicesConfig | None


def wanted_devices(option: str | None, configured: Wanted) -> Wanted:
    """What the command line says, `auto` or `2x4` (simulations x agents); else the configuration.

    **Raises:** `ConfigError`.
    """
    if option is None:
        return "auto" if configured is None and jax.process_count() > 1 else configured
    if option == "auto":
        return "auto"
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", option)
    if match is None:
        raise ConfigError(f"--devices is auto, or simulations x agents such as 2x4, got '{option}'.")
    return DevicesConfig(simulations=int(match[1]), agents=int(match[2]))


def build_on(
    wanted: Wanted, build: Callable[[], tuple[Problem, Prior, AbstractMethod]]
) -> tuple[Devices | None, Problem, Prior, AbstractMethod]:
    """The mesh, `None` where nothing is divided, and what `build` builds: on the mesh, where it is known before.

    **Raises:** `ConfigError` for more devices than there are and for agents that they cannot share evenly.
    """
    mesh = None
    try:
        if isinstance(wanted, DevicesConfig):
            mesh = Devices(wanted.simulations, wanted.agents)
            mesh.check()
        with on(mesh):  # where every process reads its own part of a world
            problem, prior, method = build()
        if wanted == "auto":
            mesh = auto_devices(problem, method.runs_an_update(problem, prior.dim))
        return mesh, problem, prior, method
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"devices: {error}") from error


def on(mesh: Devices | None) -> contextlib.AbstractContextManager[Any]:
    """Inside, everything runs on the mesh."""
    return contextlib.nullcontext() if mesh is None else mesh


def check_processes(processes: int | None, process: int | None, coordinator: str | None, join: bool) -> None:
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
def others_may_end() -> Iterator[None]:
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
            f"({first_line[:200]}); go on with --resume.",
            file=sys.stderr,
            flush=True,
        )
        remove_scratch()
        os._exit(1)  # an ordinary exit would wait for the others first
