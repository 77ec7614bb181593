"""What became slower, or takes more memory, from one set of results to another.

    python benchmarks/compare.py OLDER NEWER [--threshold 0.1]

Each is a folder of results, or one file. Times are compared in memory copies, so that those of machines of different
speed can be, roughly. Exit code 1 if a row is worse by more than the threshold, and by more than the runs of either
differ among themselves; 2 if something cannot be read.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Unreadable(Exception):
    """Results that cannot be read."""


class Row(NamedTuple):
    value: float
    unit: str
    spread: float | None
    seconds: float | None

    def __str__(self) -> str:
        if self.seconds is None:
            power = max(p for p in range(4) if p == 0 or self.value >= 1024**p)
            return f"{self.value / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
        seconds = f"{self.seconds:.3g} s" if self.seconds >= 1 else f"{1e3 * self.seconds:.3g} ms"
        return f"{self.value:.3g} copies ({seconds})"


class Pair(NamedTuple):
    """The same row, older and newer."""

    name: str
    old: Row
    new: Row

    @property
    def times(self) -> float:
        return self.new.value / self.old.value

    @property
    def spread(self) -> float:
        """How far apart the runs of either lie, where it is known."""
        return max(self.old.spread or 0.0, self.new.spread or 0.0)

    @property
    def sure(self) -> bool:
        """It is worse by more than runs of one program differ by."""
        return self.times - 1 > self.spread

    def cells(self) -> list[str]:
        note = f"{'beyond' if self.sure else 'within'} the spread of {self.spread:.0%}" if self.spread else ""
        return [self.name, str(self.old), str(self.new), f"{self.times:.2f}", note]


def read(path: Path) -> list[dict[str, Any]]:
    """The files of results there are.

    **Raises:** `Unreadable` if there are none, one is broken, or two are of the same rows.
    """
    if not path.exists():
        raise Unreadable(f"{path} does not exist: give a folder or a file that benchmarks/run.py wrote.")
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not paths:
        raise Unreadable(f"{path} holds no results: give a folder that benchmarks/run.py wrote to.")
    files = [_file(p) for p in paths]
    names = [name for file in files for name in rows_of([file])]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise Unreadable(f"{path} has two files with the row {twice!r}: leave one of them out.")
    return files


def _file(path: Path) -> dict[str, Any]:
    remedy = "run the benchmark again, or leave the file out"
    try:
        file = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} is no readable JSON ({error}): {remedy}.") from error
    try:
        rows = rows_of([file])
        header("", [file])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Unreadable(f"{path} is no file of results ({type(error).__name__}: {error}): {remedy}.") from error
    for name, row in rows.items():
        if not (0 < row.value < math.inf and 0 <= (row.spread or 0.0) < math.inf):
            raise Unreadable(f"{path} says {row.value} {row.unit} of {name!r}, which is no positive number: {remedy}.")
    return file


def rows_of(files: list[dict[str, Any]]) -> dict[str, Row]:
    """The rows that can be compared, by benchmark and name."""
    rows: dict[str, Row] = {}
    for file in files:
        for row in file["rows"]:
            unit = next((unit for unit in ("copies", "bytes") if unit in row), None)
            if unit is not None:
                spread = None if row["spread"] is None else float(row["spread"])
                seconds = float(row["seconds"]) if unit == "copies" else None
                rows[f"{file['benchmark']}: {row['name']}"] = Row(float(row[unit]), unit, spread, seconds)
    return rows


def header(label: str, files: list[dict[str, Any]]) -> str:
    """When, on what and with what these were made."""
    lines = {}
    for about in (file["about"] for file in files):
        machine, versions = about["machine"], about["versions"]
        packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "jax", "jaxlib", "equinox", "numpy"))
        lines[
            f"{about['date'][:10]}, calibrant {versions['calibrant']} ({about['revision'] or 'revision unknown'}), "
            f"{machine['processor']}, {machine['cores']} cores, {machine['memory']}; {packages}"
        ] = None
    copies = [1e3 * file["copy"]["seconds"] for file in files]
    copy = f"a memory copy: {min(copies):.1f} to {max(copies):.1f} ms"
    return "\n".join(f"{label if i == 0 else '':8}{line}" for i, line in enumerate((*lines, copy)))


def differences(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    """A sentence of machines that are not the same, and one of versions."""

    def values(files: list[dict[str, Any]], kind: str, name: str) -> str:
        return " and ".join(sorted({str(file["about"][kind].get(name)) for file in files}))

    out = []
    for kind, meaning in (("machine", "times compare only roughly"), ("versions", "what changed may be theirs")):
        names = dict.fromkeys(name for file in (*old, *new) for name in file["about"][kind])
        pairs = {name: (values(old, kind, name), values(new, kind, name)) for name in names}
        changed = [f"{name}: {a}, then {b}" for name, (a, b) in pairs.items() if a != b]
        if changed:
            out.append(f"Not the same {kind}, so {meaning} ({'; '.join(changed)}).")
    return out


def table(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def compare(old: list[dict[str, Any]], new: list[dict[str, Any]], threshold: float) -> int:
    """Print the comparison; the exit code."""
    print("\n".join([header("older", old), header("newer", new), *differences(old, new)]), end="\n\n")
    before, after = rows_of(old), rows_of(new)
    pairs = [Pair(name, row, after[name]) for name, row in before.items() if name in after]
    worse = sorted((x for x in pairs if x.times > 1 + threshold), key=lambda x: (not x.sure, -x.times))
    better = sum(x.times < 1 / (1 + threshold) for x in pairs)
    sure = sum(x.sure for x in worse)
    by = f"by more than {threshold:.0%}"
    if worse:
        lines = [[f"slower or larger {by}", "older", "newer", "times", ""], *(x.cells() for x in worse)]
        print(table(lines), end="\n\n")
    within = f", {len(worse) - sure} more within the spread of the runs" if len(worse) > sure else ""
    print(f"{sure} slower or larger {by}{within}")
    print(f"{len(pairs) - len(worse) - better} equal within {threshold:.0%}, {better} faster or smaller")
    for label, one, other in (("missing", before, after), ("new", after, before)):
        names = [name for name in one if name not in other]
        print("\n    ".join([f"{len(names)} {label}{':' if names else ''}", *names]))
    return 1 if sure else 0


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("older", type=Path)
    parser.add_argument("newer", type=Path)
    parser.add_argument("--threshold", type=float, default=0.1, help="a share; what is worse by less is not shown")
    arguments = parser.parse_args(given)
    if not 0 <= arguments.threshold < math.inf:
        parser.error(f"--threshold is {arguments.threshold}: give a share of 0 or more, such as 0.1.")
    try:
        old, new = read(arguments.older), read(arguments.newer)
    except Unreadable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return compare(old, new, arguments.threshold)


if __name__ == "__main__":
    raise SystemExit(main())
