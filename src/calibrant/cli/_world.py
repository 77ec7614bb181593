"""`calibrant world`: build, import and look at worlds."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from calibrant import worlds
from calibrant._files import atomic_path
from calibrant.models.june import JuneParams

app = typer.Typer(no_args_is_help=True, help="Build, import and look at synthetic populations.")
_out = Console()
_say = Console(stderr=True)


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise worlds.WorldError(f"{out} exists; choose another name, or pass --overwrite.")


def _write(world: worlds.World, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    world.save(out)
    _out.print(f"{world.n_people:,} people in {world.n_areas:,} areas: {out}", soft_wrap=True)


@app.command()
def build(
    out: Annotated[Path, typer.Argument(help="file to write")],
    size: Annotated[float, typer.Option(help="people, such as 20000 or 8.6e6")] = 20_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    atlas: Annotated[Path | None, typer.Option(help="GLA MSOA Atlas (CSV): London's real areas")] = None,
    centroids: Annotated[Path | None, typer.Option(help="places and boroughs of those areas (CSV)")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
) -> None:
    """Build a synthetic town or city from census facts."""
    _refuse_existing(out, overwrite)
    if (atlas is None) != (centroids is None):
        raise worlds.WorldError("--atlas and --centroids are needed together.")
    areas = worlds.read_atlas(atlas, centroids) if atlas is not None and centroids is not None else None
    if not 1 <= size <= worlds.MAX_PEOPLE:
        raise worlds.WorldError(f"--size is a number of people up to {worlds.MAX_PEOPLE:,}, got {size:g}.")
    world = worlds.build_world(round(size), seed=seed, areas=areas, progress=lambda what: _say.print(f"  {what}"))
    _write(world, out)


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="a world file of JUNE")],
    out: Annotated[Path, typer.Argument(help="file to write")],
    overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
) -> None:
    """Import a world of the JUNE simulator."""
    _refuse_existing(out, overwrite)
    world = worlds.import_june(source)
    _write(world, out)
    if world.about["left_out"] != "nobody":
        _out.print(f"main activities the model does not know were left out: {world.about['left_out']}")


@app.command()
def info(
    world: Annotated[Path, typer.Argument(help="a world file")],
    picture: Annotated[Path | None, typer.Option(help="PNG to write")] = None,
    shards: Annotated[int | None, typer.Option(help="what dividing it over so many devices would cost", min=1)] = None,
) -> None:
    """What a world looks like, beside what is known of London; with --shards, how it divides over devices."""
    loaded = worlds.World.load(world)
    if shards is not None:
        _out.print(_divided(loaded, shards))
        return
    table = Table("", "this world", "London")
    for row in worlds.summary(loaded):
        table.add_row(*row)
    _out.print(table)
    for key, value in loaded.about.items():
        _out.print(f"{key}: {value}", soft_wrap=True)
    if picture is not None:
        with atomic_path(picture) as part:
            worlds.figure(loaded).savefig(part, format="png", dpi=130)
        _out.print(f"picture: {picture}", soft_wrap=True)


@app.command()
def divide(
    world: Annotated[Path, typer.Argument(help="a world file")],
    out: Annotated[Path, typer.Argument(help="file to write")],
    blocks: Annotated[int, typer.Option(help="a multiple of the devices that agents are divided over", min=1)] = 8,
    leisure_areas: Annotated[int, typer.Option(help="as in the model", min=1)] = 3,
    overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
) -> None:
    """Lay a world out in blocks, of which every process reads its own."""
    _refuse_existing(out, overwrite)
    people = worlds.Population.of(worlds.World.load(world), blocks=blocks, near=leisure_areas)
    out.parent.mkdir(parents=True, exist_ok=True)
    people.save(out)
    _out.print(f"{blocks} blocks of {people.n_people // blocks:,} people: {out}", soft_wrap=True)


def _divided(world: worlds.World, shards: int) -> Table:
    balance = worlds.Balance.of(world, shards)
    tangents = sum(info.prior is not None for info in JuneParams.describe().values())
    table = Table(f"over {shards} devices", "", title_justify="left")
    rows = [
        ("people a device", f"{balance.people.min():,} to {balance.people.max():,}"),
        ("share of device time that is not waiting", f"{balance.efficiency:.1%}"),
        ("main activities that are cut", f"{balance.cut_venues:,} of {balance.venues:,}"),
        ("memberships that are cut", f"{balance.cut_members:.1%}"),
        ("near areas on another device", f"{balance.near_elsewhere:.1%}"),
        ("exchanged by a device in a step", _bytes(balance.bytes_a_step(world.n_areas))),
        (f"the same with {tangents} tangents", _bytes(balance.bytes_a_step(world.n_areas, 1 + tangents))),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _bytes(n: int) -> str:
    return f"{n / 2**20:,.2f} MiB" if n >= 2**20 else f"{n / 2**10:,.1f} KiB"
