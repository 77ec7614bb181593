"""`calibrant`: the commands."""

import csv
import io
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from calibrant._calibrate import CalibrationError, calibrate
from calibrant._calibration import Calibration
from calibrant._config import METHODS, MODELS, ConfigError, build_model, bundled_configs
from calibrant._devices import Devices
from calibrant._files import write_text
from calibrant._model import AbstractModel
from calibrant._prior import Prior
from calibrant._problem import Problem
from calibrant._processes import interrupts_noted, is_first, wait_for_all
from calibrant._simulate import simulate
from calibrant.cli._check import check_command
from calibrant.cli._comparison import compare_methods, write_comparison
from calibrant.cli._configured import configured
from calibrant.cli._gradients import gradients_command
from calibrant.cli._mesh import (
    CoordinatorOption,
    DevicesOption,
    JoinOption,
    ProcessesOption,
    ProcessOption,
    Where,
    build_on,
    on,
    one_simulation,
    others_may_end,
    say_devices,
)
from calibrant.cli._policies import compare
from calibrant.cli._run import names_run, read_run, report_again
from calibrant.cli._scratch import own, remove_scratch
from calibrant.cli._signals import interrupted_by_sigterm
from calibrant.cli._unfinished import begin, refuse_existing
from calibrant.cli._unfinished import resume as resumed
from calibrant.cli._world import app as world_app
from calibrant.inference import AbstractMethod, Result, auto_devices

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(world_app, name="world")
_out = Console()
_say = Console(stderr=True)

TEMPLATE = """# A calibration, for `calibrant calibrate {name}`. Lines that start with # are optional.

# devices = "auto"                # or {{ simulations = 2, agents = 4 }}: what it is divided over

[model]
name = "sir"                      # `calibrant models` lists the bundled ones; yours is "module:Class"
options = {{ n_agents = 1000, household = 1000, group = 1000 }}  # its arguments: here, one mixed population
steps = 60

[data]
synthetic = {{ seed = 1 }}          # simulate data to try things out, or read yours:
# file = "cases.csv"              # a CSV with a header; blanks mean not observed
# columns = {{ infected = "cases" }}  # output of the model = column of the file

[loss]                            # one for all outputs ...
name = "gaussian"
scale = 30.0                      # a number, or the name of a parameter with a prior below
marginal = true                   # average the likelihood over replicates before its logarithm
# [loss.streams.infected]         # ... or one an output
# name = "negative-binomial"
# concentration = "k"             # a number, or the name of a parameter with a prior below

[parameters.beta]                 # parameters not named here keep the model's own prior
prior = {{ distribution = "LogNormal", loc = -0.7, scale = 0.7 }}
[parameters.initial]
value = 5.0                       # fixed

[method]
name = "gvi"                      # or point, nuts, mala, smc-abc, with fields of their own: see the docs
weight = 1.0                      # w of the KL divergence from the prior; 1 is Bayes with a negative log-likelihood
simulations = 5                   # parameter values an update
replicates = 20                   # simulations of each
max_updates = 300
learning_rate = 3e-3
estimator = "straight-through"    # finite-differences, controlled-score, ...: see calibrant gradients
horizon = "full"                  # or {{ sliding = 3 }}, {{ block = 10 }}, {{ geometric = 0.9 }}
mode = "reverse"                  # checkpointed, hybrid, auto: a planner chooses
posterior = "masked-autoregressive"  # coupling-spline, full-rank-gaussian
# patience = 10                   # stop after so many evaluations without improvement
"""


@app.command("calibrate")
def calibrate_command(
    config: Annotated[str | None, typer.Argument(help="a bundled configuration, or a TOML file")] = None,
    out: Annotated[Path | None, typer.Option(help="run directory to write; runs/NAME by default")] = None,
    seed: Annotated[int, typer.Option(help="equal seeds give equal bits", min=0)] = 0,
    updates: Annotated[int | None, typer.Option(help="instead of max_updates of the configuration", min=1)] = None,
    size: Annotated[float | None, typer.Option(help="JUNE: people of the built town")] = None,
    scale: Annotated[float | None, typer.Option(help="JUNE: of London's population, up to 1")] = None,
    data: Annotated[Path | None, typer.Option(help="directory of the data file")] = None,
    start: Annotated[Path | None, typer.Option(help="run directory whose posterior to begin with")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing run directory")] = False,
    resume: Annotated[Path | None, typer.Option(help="run directory of a run that was stopped: go on with it")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
    devices: DevicesOption = None,
    processes: ProcessesOption = None,
    process: ProcessOption = None,
    coordinator: CoordinatorOption = None,
    join: JoinOption = False,
) -> None:
    """Fit a posterior and write a run directory with a report.

    A run that is killed or interrupted goes on, to the same bits, with --resume and its run directory. Started on
    several hosts with the same arguments, and --processes or --join, it runs on the devices of them all.
    """
    machine = Where(devices, processes, process, coordinator, join)
    if resume is not None:
        if (
            config is not None
            or seed
            or overwrite
            or any(x is not None for x in (out, updates, size, scale, data, start))
        ):
            raise ConfigError("--resume goes on as the run was begun; leave everything else out.")
        run = resumed(resume)
    elif config is None:
        raise ConfigError("calibrate takes a bundled configuration or a TOML file, or --resume and a run directory.")
    else:
        settings, directory, text = configured(config, updates=updates, size=size, scale=scale, data=data)
        name = Path(config).stem
        out = Path("runs") / name if out is None else out
        if is_first():
            refuse_existing(out, overwrite)
        if start is not None:
            text += f"\n# on the command line: --start {start}\n"
        run = begin(out, name, settings, text, directory, seed=seed, start=start, overwrite=overwrite)
    wanted = machine.wanted(run.devices or run.config.devices)
    mesh, (problem, prior, method) = build_on(wanted, lambda: run.config.build(run.directory), _for_updates)
    run.on(mesh)
    say_devices(mesh, quiet)
    posterior = None
    if run.start is not None:
        posterior = read_run(run.start)[-1].posterior
        try:
            method.init(problem, prior, run.seed, posterior)
        except ValueError as error:
            raise ConfigError(f"--start {start or run.start}: {error}") from error
    with others_may_end("go on with --resume"), run, on(mesh), interrupted_by_sigterm(), interrupts_noted():
        result = calibrate(
            problem,
            prior,
            method=method,
            seed=run.seed,
            start=posterior,
            progress=not quiet,
            checkpoints=run.checkpoints,
            throw=False,
        )
        report = run.finish(problem, result)
        draws = result.sample(0, 10_000)
        wait_for_all("a run is written")
    _tell(result, draws, report)
    if result.result is Result.INTERRUPTED:
        _out.print(f"interrupted; go on with: calibrant calibrate --resume {run.out}", soft_wrap=True)
        raise typer.Exit(130)
    if not result.result.successful:
        raise CalibrationError(result)


def _for_updates(built: tuple[Problem, Prior, AbstractMethod]) -> Devices:
    """A mesh for the simulations that an update has side by side."""
    problem, prior, method = built
    return auto_devices(problem, method.runs_an_update(problem, prior.dim))


def _tell(result: Calibration, draws: dict[str, Any], report: Path) -> None:
    """What came of a calibration, on standard output."""
    table = Table("parameter", "median", "90% interval")
    for label, x in draws.items():
        x = np.asarray(x)
        for index in np.ndindex(x.shape[1:]):
            low, middle, high = np.quantile(x[:, *index], [0.05, 0.5, 0.95])
            table.add_row(label + "".join(f"[{i}]" for i in index), f"{middle:.4g}", f"{low:.4g} to {high:.4g}")
    _out.print(table)
    _out.print(
        f"loss {result.evaluation['loss']:.5g}, "
        + (f"KL {result.evaluation['kl']:.3g} nats, " if np.isfinite(result.evaluation["kl"]) else "")
        + f"{result.n_simulations} simulations in {result.timings['total']:.0f} s"
        + (f", {result.n_failed} not finite" if result.n_failed else "")
    )
    _out.print(f"report: {report}", soft_wrap=True)


@app.command("compare")
def compare_command(
    config: Annotated[str, typer.Argument(help="a bundled configuration, or a TOML file")],
    methods: Annotated[
        str, typer.Option(help="names with commas between: " + ", ".join(METHODS))
    ] = "gvi,smc-abc,point",
    budget: Annotated[int, typer.Option(help="simulations of each method", min=1)] = 20_000,
    datasets: Annotated[int, typer.Option(help="synthetic data sets, each from a seed of its own", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="equal seeds give equal bits", min=0)] = 0,
    size: Annotated[float | None, typer.Option(help="JUNE: people of the built town")] = None,
    scale: Annotated[float | None, typer.Option(help="JUNE: of London's population, up to 1")] = None,
    data: Annotated[Path | None, typer.Option(help="directory of the data file")] = None,
    out: Annotated[Path | None, typer.Option(help="directory to write; comparisons/NAME by default")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
    devices: DevicesOption = None,
    processes: ProcessesOption = None,
    process: ProcessOption = None,
    coordinator: CoordinatorOption = None,
    join: JoinOption = False,
) -> None:
    """Calibrate by several methods, each with the same number of simulations, and set the results side by side."""
    settings, directory, text = configured(config, updates=None, size=size, scale=scale, data=data)
    name = Path(config).stem
    out = Path("comparisons") / name if out is None else out
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose another --out.")
    wanted = Where(devices, processes, process, coordinator, join).wanted(settings.devices)
    mesh = None if wanted is None else build_on(wanted, lambda: settings.build(directory), _for_updates)[0]
    say_devices(mesh, quiet)
    rows, table, written, out = [], None, out, own(out)
    with others_may_end(), on(mesh):
        for rows in compare_methods(
            settings, directory, methods.split(","), budget=budget, datasets=datasets, seed=seed, progress=not quiet
        ):  # written each time, so that little is lost if it ends early
            table, written = write_comparison(out, name, rows, text=text, budget=budget, seed=seed)
    _out.print(table)
    for row in rows:
        if not row["successful"]:
            _out.print(f"{row['method']}: {row['reason']}", soft_wrap=True)
    _out.print(f"table and picture: {written}", soft_wrap=True)
    if any(row["result"] == Result.INTERRUPTED.value for row in rows):
        raise typer.Exit(130)


@app.command()
def init(path: Annotated[Path, typer.Argument(help="file to write")] = Path("calibration.toml")) -> None:
    """Write a commented configuration to start from."""
    if path.exists():
        raise ConfigError(f"{path} exists; choose another name.")
    write_text(path, TEMPLATE.format(name=path.name))
    _out.print(f"wrote {path}; run: calibrant calibrate {path}", soft_wrap=True)


@app.command()
def models() -> None:
    """List bundled models with their parameters, and bundled configurations."""
    for name, (_, about) in MODELS.items():
        table = Table(
            "parameter", "default", "units", "prior", "meaning", title=f"{name}: {about}", title_justify="left"
        )
        for parameter, info in build_model(name, {}, Path.cwd()).Params.describe().items():
            prior = type(info.prior).__name__ if info.prior is not None else "fixed"
            table.add_row(parameter, str(info.default), info.units, prior, info.description)
        _out.print(table)
    _out.print("configurations: " + ", ".join(bundled_configs()), soft_wrap=True)


@app.command("simulate")
def simulate_command(
    target: Annotated[str, typer.Argument(help="a bundled model, module:Class, or a run directory")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    values: Annotated[list[str] | None, typer.Option("--set", help="parameter=value, as often as needed")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file to write; standard output by default")] = None,
    policy: Annotated[Path | None, typer.Option(help="TOML file with other policies; target is a run of JUNE")] = None,
    draws: Annotated[int, typer.Option(help="with --policy: draws of the posterior", min=2)] = 50,
    devices: DevicesOption = None,
    processes: ProcessesOption = None,
    process: ProcessOption = None,
    coordinator: CoordinatorOption = None,
    join: JoinOption = False,
) -> None:
    """Simulate a model at its defaults, at given values, or (a run directory) at the posterior median, to a CSV.

    With --policy, answer what would have happened under other policies: bands from the posterior, the same random
    numbers with the policies of the run and with the others.
    """
    wanted = Where(devices, processes, process, coordinator, join).wanted()
    if policy is not None:
        if steps is not None or values:
            raise ConfigError("--policy compares two calendars at draws of the posterior; leave --steps and --set out.")
        if wanted is not None:
            raise ConfigError("--policy runs on one device; leave --devices and other processes out.")
        written = compare(Path(target), policy, draws=draws, seed=seed, out=out)
        _out.print(f"table and picture: {written}", soft_wrap=True)
        return
    if out is not None and out.is_dir():
        raise ConfigError(f"{out} is a directory; --out is the CSV file to write.")
    mesh, (model, params, its_steps) = build_on(
        wanted, lambda: _simulated(target), lambda built: one_simulation(built[0])
    )
    say_devices(mesh)
    steps = its_steps if steps is None else steps
    params = params.replace(dict(_assignment(model, text) for text in values or []))
    with others_may_end(), on(mesh):
        outputs = jax.tree.map(np.asarray, simulate(model, params, seed=seed, steps=steps).outputs)
    text = _to_csv(outputs)
    if out is None:
        sys.stdout.write(text)
    else:
        write_text(own(out), text)


def _simulated(target: str) -> tuple[AbstractModel, Any, int | None]:
    """A model at its defaults, or a run's at the posterior median, and the steps of the run."""
    if not names_run(target):
        model = build_model(target, {}, Path.cwd())
        return model, model.default_params, None
    _, _, _, problem, calibration = read_run(Path(target))
    median = {name: jax.numpy.asarray(q[0]) for name, q in calibration.quantiles((0.5,)).items()}
    return problem.model, problem.with_values(median), problem.steps


def _assignment(model: Any, text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or name not in model.Params.describe():
        raise ConfigError(
            f"--set takes parameter=value with one of {', '.join(model.Params.describe())}, got '{text}'."
        )
    try:
        numbers = [float(x) for x in value.split(",")]
    except ValueError:
        raise ConfigError(f"--set {text}: '{value}' is no number.") from None
    if not np.all(np.isfinite(numbers)):
        raise ConfigError(f"--set {text}: '{value}' is not finite.")
    shape = np.shape(getattr(model.default_params, name))
    if np.shape(numbers[0] if shape == () and len(numbers) == 1 else numbers) != shape:
        raise ConfigError(f"--set {text}: '{name}' has shape {shape}.")
    return name, numbers if shape else numbers[0]


def _to_csv(outputs: Any) -> str:
    streams = outputs if isinstance(outputs, dict) else {"value": outputs}
    columns: dict[str, np.ndarray] = {}
    for name, x in streams.items():
        x = np.asarray(x)
        if x.ndim <= 1:
            columns[name] = np.atleast_1d(x)
        else:
            columns |= {f"{name}[{i}]": column for i, column in enumerate(x.reshape(len(x), -1).T)}
    length = max(len(x) for x in columns.values())
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["time", *columns])
    for t in range(length):
        writer.writerow([t + 1, *(f"{x[t]:.9g}" if t < len(x) else "" for x in columns.values())])
    return buffer.getvalue()


app.command("check")(check_command)
app.command("gradients")(gradients_command)


@app.command("report")
def report_command(run: Annotated[Path, typer.Argument(help="a run directory")]) -> None:
    """Write the report of a run directory anew."""
    _out.print(f"report: {report_again(run)}", soft_wrap=True)


def main() -> None:
    """Entry point: mistakes of the user end in one sentence on standard error and exit code 2."""
    try:
        app(standalone_mode=True)
    except (ConfigError, ValueError, OSError) as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except CalibrationError as error:
        _fail(str(error), 1)
    finally:
        remove_scratch()


def _fail(message: str, code: int) -> None:
    sentence = " ".join(message.split())
    print(f"calibrant: {sentence}", file=sys.stderr)
    raise SystemExit(code)
