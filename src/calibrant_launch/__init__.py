"""The command `calibrant`: joins the other processes, if it is one of several, and only then loads the rest.

It is a package of its own because processes must join before JAX does anything, and importing Calibrant makes arrays.
So must be said what a GPU is to promise: sums in one order, so that equal seeds give equal bits.
"""

import argparse
import os
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any, NoReturn

#: Seconds: to wait for the others at the start, and until a process that says nothing is taken for dead.
JOIN_WITHIN, SILENT_FOR = 50, 20
#: On a GPU XLA adds up derivatives of what many agents share in the order in which they come, unless told not to.
SAME_BITS = "--xla_gpu_deterministic_ops"
_SAID_BY_USER = (SAME_BITS, "--xla_gpu_exclude_nondeterministic_ops")


def main() -> None:
    """Entry point."""
    reproducible(os.environ)
    joined = _join(sys.argv[1:])
    try:
        from calibrant.cli import main as command

        command()
    except BaseException as error:
        if joined and not (isinstance(error, SystemExit) and error.code in (0, None)):
            _leave(error)
        raise


def reproducible(environment: MutableMapping[str, str]) -> None:
    """Ask XLA for the same bits in every run, unless `XLA_FLAGS` says something of that already."""
    flags = environment.get("XLA_FLAGS", "")
    if not any(name in flags for name in _SAID_BY_USER):
        environment["XLA_FLAGS"] = f"{flags} {SAME_BITS}=true".strip()


def _leave(error: BaseException) -> NoReturn:
    """End at once: an ordinary exit waits for the others, who may be waiting for this process."""
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _join(arguments: list[str]) -> bool:
    """Join the other processes if the arguments say that there are some. The commands look at them again."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--processes")
    parser.add_argument("--process")
    parser.add_argument("--coordinator")
    parser.add_argument("--join", action="store_true")
    try:
        given, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        return False  # the command's own parser says it better
    flags = (given.processes, given.process, given.coordinator)
    if all(x is None for x in flags) and not given.join:
        return False
    where: dict[str, Any] = {}
    if not given.join:
        if any(x is None for x in flags):
            _fail(
                "--processes, --process and --coordinator belong together; under SLURM or Open MPI --join finds them."
            )
        try:
            count, process = int(given.processes), int(given.process)
        except ValueError:
            _fail("--processes and --process are whole numbers.")
        if not 0 <= process < count:
            _fail(f"--process is from 0 to {count - 1}, got {process}.")
        where = {"coordinator_address": given.coordinator, "num_processes": count, "process_id": process}
    elif any(x is not None for x in flags):
        _fail("--join finds the other processes by itself; leave --processes, --process and --coordinator out.")
    import jax

    try:
        jax.distributed.initialize(**where, initialization_timeout=JOIN_WITHIN, heartbeat_timeout_seconds=SILENT_FOR)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        _fail(f"the processes could not join within {JOIN_WITHIN} s ({reason}); is every one of them started?", 1)
    _stdout_of_python_alone()
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # results are told by the first  # noqa: SIM115
    return True


def _stdout_of_python_alone() -> None:
    """The library that connects processes prints; that goes to standard error, and standard output holds results."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, buffering=1)
    os.dup2(2, 1)


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"calibrant: {message}", file=sys.stderr)
    raise SystemExit(code)
