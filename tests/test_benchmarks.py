"""Speed is watched: results are compared, and every benchmark is run or said why not. Nothing is timed here."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MACHINE = {"processor": "a processor", "cores": 2, "memory": "8 GiB", "system": "Linux", "device": "cpu"}
VERSIONS = dict.fromkeys(("python", "jax", "jaxlib", "equinox", "numpy", "calibrant"), "1.0")


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def time(name, copies, spread=0.01):
    return {"name": name, "seconds": copies / 100, "spread": spread, "copies": copies}


def size(name, size):
    return {"name": name, "bytes": size, "spread": None}


@pytest.fixture
def compare(tmp_path, capsys):
    """Compares two lists of rows; the exit code and what was printed."""

    def run(old, new, *options, about=None):
        for folder, rows, changed in (("old", old, {}), ("new", new, about or {})):
            made = {"date": "2026-01-01T00:00:00", "revision": None, "machine": MACHINE, "versions": VERSIONS} | changed
            file = {"benchmark": "walk", "about": made, "took": 1.0, "copy": {"seconds": 0.01}, "rows": rows}
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "walk.json").write_text(json.dumps(file))
        code = load("compare").main([str(tmp_path / "old"), str(tmp_path / "new"), *options])
        return code, capsys.readouterr().out

    return run


def test_a_row_that_is_slower_by_a_fifth_is_named(compare):
    code, printed = compare(
        [time("forward", 10.0), time("reverse", 20.0)], [time("forward", 12.0), time("reverse", 20.0)]
    )
    assert code == 1
    assert "walk: forward" in printed
    assert "1.20" in printed
    assert "walk: reverse" not in printed
    assert "1 slower or larger by more than 10%" in printed
    assert "1 equal within 10%, 0 faster or smaller" in printed


def test_a_row_that_is_slower_by_a_twentieth_is_not(compare):
    code, printed = compare([time("forward", 10.0)], [time("forward", 10.5)])
    assert code == 0
    assert "walk: forward" not in printed


def test_it_is_if_the_threshold_says_so(compare):
    assert compare([time("forward", 10.0)], [time("forward", 10.5)], "--threshold", "0.04")[0] == 1


@pytest.mark.parametrize("spreads", [(0.3, 0.01), (0.01, 0.3)])
def test_a_row_within_the_spread_of_its_runs_is_not_called_slower(compare, spreads):
    code, printed = compare([time("forward", 10.0, spreads[0])], [time("forward", 12.0, spreads[1])])
    assert code == 0
    assert "0 slower or larger by more than 10%, 1 more within the spread" in printed


def test_what_is_slower_beyond_doubt_stands_first(compare):
    old = [time("noisy", 10.0, 0.9), time("slower", 10.0), time("slowest", 10.0)]
    _, printed = compare(old, [time("noisy", 18.0), time("slower", 12.0), time("slowest", 14.0)])
    assert printed.index("slowest") < printed.index("walk: slower ") < printed.index("noisy")


def test_faster_rows_are_counted(compare):
    code, printed = compare([time("forward", 10.0)], [time("forward", 8.0)])
    assert code == 0
    assert "0 equal within 10%, 1 faster or smaller" in printed


def test_memory_is_watched_too(compare):
    code, printed = compare([size("peak", 100 * 2**20)], [size("peak", 120 * 2**20)])
    assert code == 1
    assert "100 MiB" in printed
    assert "120 MiB" in printed


def test_a_row_run_once_has_no_spread(compare):
    assert compare([time("built", 10.0, None)], [time("built", 12.0, None)])[0] == 1


def test_missing_and_new_rows_are_listed(compare):
    code, printed = compare([time("forward", 10.0)], [time("reverse", 10.0), {"name": "not compared"}])
    assert code == 0
    assert "1 missing:\n    walk: forward" in printed
    assert "1 new:\n    walk: reverse\n" in printed


def test_other_machines_and_versions_are_said(compare):
    rows = [time("forward", 10.0)]
    assert "Not the same" not in compare(rows, rows)[1]
    _, printed = compare(rows, rows, about={"machine": MACHINE | {"cores": 8}, "versions": VERSIONS | {"jax": "1.1"}})
    assert "Not the same machine, so times compare only roughly (cores: 2, then 8)." in printed
    assert "Not the same versions, so what changed may be theirs (jax: 1.0, then 1.1)." in printed


BROKEN = {
    "no JSON": "{",
    "a list": "[]",
    "no rows": '{"benchmark": "walk"}',
    "nothing of the machine": json.dumps({"benchmark": "walk", "about": {}, "rows": []}),
    "half a row": json.dumps({"benchmark": "walk", "rows": [{"name": "forward", "copies": 1.0}]}),
}


def refused(capsys, *arguments):
    """The error, which is one sentence and says what to do."""
    assert load("compare").main([str(x) for x in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(kind, tmp_path, capsys):
    broken = tmp_path / "walk.json"
    broken.write_text(BROKEN[kind])
    said = refused(capsys, tmp_path, tmp_path)
    assert str(broken) in said
    assert said.endswith("run the benchmark again, or leave the file out.\n")


@pytest.mark.parametrize("copies", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_no_positive_number_is_refused(copies, compare, tmp_path, capsys):
    compare([time("forward", 1.0)], [time("forward", 1.0)])
    file = tmp_path / "new" / "walk.json"
    file.write_text(file.read_text().replace('"copies": 1.0', f'"copies": {json.dumps(copies)}'))
    assert "'walk: forward', which is no positive number" in refused(capsys, tmp_path / "old", tmp_path / "new")


def test_folders_without_results_are_refused(tmp_path, capsys):
    assert "does not exist" in refused(capsys, tmp_path / "none", tmp_path)
    assert "holds no results" in refused(capsys, tmp_path, tmp_path)


def test_two_files_of_one_benchmark_are_refused(compare, tmp_path, capsys):
    compare([time("forward", 1.0)], [time("forward", 1.0)])
    shutil.copy(tmp_path / "new" / "walk.json", tmp_path / "new" / "walk again.json")
    assert "two files with the row 'walk: forward'" in refused(capsys, tmp_path / "old", tmp_path / "new")
    assert load("compare").main([str(tmp_path / "old"), str(tmp_path / "new" / "walk again.json")]) == 0


def test_every_script_is_run_or_left_out_with_a_reason():
    run = load("run")
    listed = {benchmark.script for benchmark in run.BENCHMARKS.values()} | {name.split()[0] for name in run.LEFT_OUT}
    assert listed == {path.name for path in BENCHMARKS.glob("*.py")} - {"run.py", "compare.py", "measuring.py"}
    assert all(run.LEFT_OUT.values())
    assert set(run.LINUX) <= set(run.BENCHMARKS)


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """`run.py` with benchmarks of a line each, by name."""
    run = load("run")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)

    def make(**scripts):
        for name, line in scripts.items():
            (tmp_path / f"{name}.py").write_text(line)
        monkeypatch.setattr(run, "BENCHMARKS", {name: run.Benchmark(f"{name}.py") for name in scripts})
        return run

    return make


WRITES = "import sys; open(sys.argv[2], 'w').write('{\"took\": 90}')"


def test_results_of_each_are_written_and_the_time_left_is_told(made_up, tmp_path, capfd):
    run = made_up(one=WRITES, two=WRITES)
    assert run.main(["--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one.json", "two.json"}
    assert "[2 of 2] two; time left unknown" in capfd.readouterr().out
    assert run.main(["--out", str(tmp_path / "out"), "--only", "two"]) == 0
    assert "[1 of 1] two; about 90 s left" in capfd.readouterr().out


def test_one_that_fails_is_said_and_leaves_no_earlier_result(made_up, tmp_path, capfd):
    run = made_up(fails="raise SystemExit(3)", writes=WRITES)
    (tmp_path / "fails.json").write_text('{"took": 1}')
    assert run.main(["--out", str(tmp_path)]) == 1
    assert capfd.readouterr().err == "fails failed with exit code 3\n"
    assert [path.name for path in tmp_path.glob("*.json")] == ["writes.json"]


def test_one_that_takes_too_long_is_stopped(made_up, tmp_path, capfd, monkeypatch):
    run = made_up(hangs="import time; time.sleep(600)")
    monkeypatch.setattr(run, "LIMIT", 0.1)
    assert run.main(["--out", str(tmp_path)]) == 1
    assert "hangs stopped: it did not end within" in capfd.readouterr().err
