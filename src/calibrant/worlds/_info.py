"""What a world looks like beside what is known of London."""

from typing import Any

import numpy as np

from calibrant.worlds import _facts as facts
from calibrant.worlds._world import ACTIVITIES, RESIDENCES, World


def summary(world: World) -> list[tuple[str, str, str]]:
    """Rows of (figure, in this world, known of London)."""
    n = world.n_people
    household_sizes = _household_sizes(world)
    counts = facts.AGE_COUNTS / facts.AGE_COUNTS.sum()
    rows = [
        ("people", f"{n:,}", ""),
        ("areas, boroughs", f"{world.n_areas:,}, {len(world.borough_names)}", "983, 33"),
        ("mean age", f"{world.age.mean():.1f}", f"{(counts * (facts.AGE_BANDS + 2.5)).sum():.1f}"),
    ]
    for low, high in ((0, 15), (15, 30), (30, 45), (45, 65), (65, 121)):
        known = counts[(low <= facts.AGE_BANDS) & (high > facts.AGE_BANDS)].sum()
        here = np.mean((world.age >= low) & (world.age < high))
        rows.append((f"aged {low} to {high - 1}" if high < 121 else "aged 65 and over", f"{here:.1%}", f"{known:.1%}"))
    rows += [
        ("mean household", f"{household_sizes.mean():.2f}", "2.47"),
        ("households of one", f"{np.mean(household_sizes == 1):.1%}", "31.6%"),
        ("households of six or more", f"{np.mean(household_sizes >= 6):.1%}", "3.9%"),
        ("in care homes", f"{_in_care(world):.2%}", f"{facts.CARE_RESIDENTS:.2%}"),
    ]
    known = {
        "company": ("35.8%", "15"),
        "school": ("", "230 to 1,010"),
        "university": ("4.9%", "10,312"),
        "care home": ("", ""),
    }
    for kind, name in enumerate(ACTIVITIES):
        sizes = _venue_sizes(world, kind)
        if not sizes.size:
            continue
        share, mean = known[name]
        rows.append((f"at a {name}", f"{sizes.sum() / n:.1%}", share))
        rows.append((f"people in a {name}, mean", f"{sizes.mean():,.1f}", mean))
    companies = _venue_sizes(world, 0)
    if companies.size:
        rows.append(("companies under 10", f"{np.mean(companies < 10):.0%}", "87%"))
        rows.append(("jobs in 1,000 or more", f"{companies[companies >= 1000].sum() / companies.sum():.0%}", "39%"))
    return rows


def figure(world: World) -> Any:
    """Age pyramid, household sizes, venue sizes and a map, beside what is known of London. A matplotlib figure."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(11, 7), layout="constrained")
    axes = made.subplots(2, 2)
    here, known = "#2563a8", "#9ca3af"
    edges = np.append(facts.AGE_BANDS, 100)
    axis = axes[0, 0]
    for sex, side in ((1, -1), (0, 1)):
        share = np.histogram(np.minimum(world.age[world.sex == sex], 99), edges)[0] / world.n_people
        axis.barh(edges[:-1] + 2.5, side * share, height=4.4, color=here if sex else "#c2410c")
    axis.step(
        np.append(facts.AGE_COUNTS, facts.AGE_COUNTS[-1]) / facts.AGE_COUNTS.sum() / 2,
        edges,
        where="pre",
        color="black",
        lw=0.8,
    )
    axis.step(
        -np.append(facts.AGE_COUNTS, facts.AGE_COUNTS[-1]) / facts.AGE_COUNTS.sum() / 2,
        edges,
        where="pre",
        color="black",
        lw=0.8,
    )
    axis.set(title="Age: men left, women right; line: London 2012, halved", ylabel="age", xlabel="share of people")
    axis.xaxis.set_major_formatter(lambda x, _: f"{abs(x):.0%}")

    axis = axes[0, 1]
    sizes = _household_sizes(world)
    shares = np.bincount(np.minimum(sizes, 6), minlength=7)[1:] / sizes.size
    axis.bar(np.arange(1, 7) - 0.2, shares, 0.4, color=here, label="this world")
    axis.bar(np.arange(1, 7) + 0.2, np.array([27, 36, 16, 15, 4, 2]) / 100, 0.4, color=known, label="United Kingdom")
    axis.set_xticks(range(1, 7), ["1", "2", "3", "4", "5", "6+"])
    axis.set(title="Household size (London has more of one and of six)", xlabel="people")
    axis.yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axis.legend(frameon=False, loc="upper right")

    axis = axes[1, 0]
    for kind, name in enumerate(ACTIVITIES):
        sizes = np.sort(_venue_sizes(world, kind))[::-1]
        if sizes.size:
            axis.loglog(
                sizes, np.arange(1, sizes.size + 1) / sizes.size, label=name, marker="." if sizes.size < 9 else None
            )
    axis.axvline(10, color=known, lw=0.8)
    axis.axhline(0.13, color=known, lw=0.8)
    axis.set(
        title="Venue sizes (grey: 13% of companies have 10 or more)", xlabel="people", ylabel="share at least as large"
    )
    axis.legend(frameon=False, loc="lower left")

    axis = axes[1, 1]
    people = np.bincount(world.area, minlength=world.n_areas)
    points = axis.scatter(
        world.longitude, world.latitude, s=np.clip(4e3 / world.n_areas, 4, 60), c=people, cmap="viridis"
    )
    _square_map(axis, world)
    axis.set(title="Residents an area", xlabel="longitude", ylabel="latitude")
    made.colorbar(points, ax=axis)
    for axis in axes.ravel():
        axis.spines[["top", "right"]].set_visible(False)
    return made


def _square_map(axis: Any, world: World) -> None:
    """Limits that hold all areas, at least 0.04 degrees of latitude apart: a world may have one area."""
    stretch = 1 / np.cos(np.radians(world.latitude.mean()))  # of a degree of latitude, over one of longitude
    spans = np.ptp(world.latitude), np.ptp(world.longitude) / stretch
    half = max(0.55 * max(spans), 0.02)
    for set_limits, x, unit in ((axis.set_ylim, world.latitude, 1.0), (axis.set_xlim, world.longitude, stretch)):
        middle = (x.max() + x.min()) / 2
        set_limits(middle - half * unit, middle + half * unit)
    axis.set_aspect(stretch)
    axis.ticklabel_format(useOffset=False)
    axis.locator_params(nbins=4)


def _household_sizes(world: World) -> np.ndarray:
    sizes = np.bincount(world.residence, minlength=world.n_residences)
    return sizes[world.residence_kind == RESIDENCES.index("household")]


def _in_care(world: World) -> float:
    return float(np.mean(world.residence_kind[world.residence] == RESIDENCES.index("care home")))


def _venue_sizes(world: World, kind: int) -> np.ndarray:
    sizes = np.bincount(world.activity[world.activity >= 0], minlength=world.n_activities)
    return sizes[world.activity_kind == kind]
