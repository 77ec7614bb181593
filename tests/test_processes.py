"""Several processes over loopback: they learn what one does; where one is killed the others end, and one goes on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from commands import run

CONFIG = """
[model]
name = "sir"
options = { n_agents = 40 }
steps = 5
[data]
synthetic = { seed = 1, values = { initial = 10.0 } }
streams = ["infected"]
[loss]
name = "mean-squared-error"
[parameters.initial]
value = 10.0
[method]
weight = 0.01
simulations = 2
max_updates = %d
evaluate_every = 2
evaluation_simulations = 4
kl_samples = 20
posterior = "full-rank-gaussian"
"""


def _free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _start(count, *arguments):
    command = [sys.executable, "-c", "from calibrant_launch import main; main()", *arguments]
    where = ["--coordinator", f"localhost:{_free_port()}", "--processes", str(count)]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
    return [
        subprocess.Popen(
            [*command, *where, "--process", str(i)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]


def _ended(processes, within):
    try:
        return [p.communicate(timeout=within)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()


def _history(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([[row["loss"], row["kl"]] for row in rows])


@pytest.mark.parametrize("mode", ["reverse", pytest.param("auto", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_does(mode, here, monkeypatch, capsys):
    (here / "c.toml").write_text(CONFIG % 4 + f'mode = "{mode}"\n')
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet", "--out", "alone")
    assert code == 0, err
    processes = _start(2, "calibrate", "c.toml", "--quiet", "--out", "together", "--devices", "1x2")
    first, second = _ended(processes, 300)
    assert [p.returncode for p in processes] == [0, 0], first + second
    assert "report: together/report.html" in first
    assert "report" not in second
    assert json.loads((here / "together/manifest.json").read_text())["devices"] == {"simulations": 1, "agents": 2}
    assert sorted(p.name for p in (here / "together").iterdir()) == sorted(p.name for p in (here / "alone").iterdir())
    np.testing.assert_allclose(_history(here / "together"), _history(here / "alone"), rtol=1e-4)


def test_a_mistake_that_one_sees_ends_all(here):
    (here / "c.toml").write_text(CONFIG % 4)
    (here / "run").mkdir()
    (here / "run/manifest.json").write_text("{}")
    processes = _start(2, "calibrate", "c.toml", "--quiet", "--out", "run", "--devices", "1x2")
    first, _ = _ended(processes, 60)
    assert "run exists; choose another --out" in first
    assert processes[0].returncode == 2
    assert processes[1].returncode != 0


def test_interrupts_that_arrive_at_different_moments_end_both_after_the_same_update(here):
    (here / "c.toml").write_text(CONFIG % 100_000)
    processes = _start(2, "calibrate", "c.toml", "--quiet", "--out", "run")
    deadline = time.monotonic() + 300
    while not list((here / "run.unfinished/checkpoints").glob("0*[1-9]*.h5")) and time.monotonic() < deadline:
        assert [p.poll() for p in processes] == [None, None], processes[0].communicate()[0]
        time.sleep(0.2)
    for process in processes:
        process.send_signal(signal.SIGTERM)
        time.sleep(3)  # the first may be writing its report by now
    said = _ended(processes, 120)
    assert [p.returncode for p in processes] == [130, 130], said
    assert "go on with: calibrant calibrate --resume run" in said[0]
    assert (here / "run/run.json").is_file()
    assert (here / "run/report.html").is_file()


def test_a_killed_process_ends_the_others_and_one_goes_on(here, monkeypatch, capsys):
    (here / "c.toml").write_text(CONFIG % 100_000)
    processes = _start(2, "calibrate", "c.toml", "--quiet", "--out", "run")
    checkpoints = here / "run.unfinished/checkpoints"
    deadline = time.monotonic() + 300
    while not list(checkpoints.glob("0*[1-9]*.h5")) and time.monotonic() < deadline:
        assert [p.poll() for p in processes] == [None, None], processes[0].communicate()[0]
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGKILL)
    first, _ = _ended(processes, 60)
    assert processes[0].returncode != 0
    assert "one of which has ended" in first or "another task died" in first

    # On another number of devices, to an end that comes sooner.
    newest = max(checkpoints.glob("*.h5"))
    about = here / "run.unfinished/run.json"
    with h5py.File(newest) as file:
        facts = json.loads(np.asarray(file["facts"]).tobytes())
    assert facts["history"]
    assert json.loads(about.read_text())["devices"] == {"simulations": 2, "agents": 1}
    processes = _start(1, "calibrate", "--resume", "run", "--quiet", "--devices", "1x1")
    while len(list(checkpoints.glob("*.h5"))) and max(checkpoints.glob("*.h5")) == newest:
        assert processes[0].poll() is None, processes[0].communicate()[0]
        time.sleep(0.2)
    processes[0].send_signal(signal.SIGTERM)
    (said,) = _ended(processes, 120)
    assert processes[0].returncode == 130, said
    assert (here / "run/report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--processes", "2"), "belong together"),
        (("--processes", "two", "--process", "0", "--coordinator", "x:1"), "whole numbers"),
        (("--processes", "2", "--process", "2", "--coordinator", "x:1"), "--process is from 0 to 1, got 2"),
        (("--join", "--processes", "2"), "leave --processes"),
        (("--join",), "could not join"),
    ],
)
def test_mistakes_of_joining(arguments, expected, monkeypatch, capsys):
    from calibrant_launch import main

    monkeypatch.setattr("sys.argv", ["calibrant", "calibrate", "x.toml", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (1, 2)
    assert expected in capsys.readouterr().err


def test_mistakes_of_devices(here, monkeypatch, capsys):
    (here / "c.toml").write_text(CONFIG % 4)
    for option, expected in (("3", "simulations x agents such as 2x4"), ("1x9", "there are 8"), ("1x7", "40 agents")):
        code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--devices", option)
        assert code == 2
        assert expected in err
    (here / "d.toml").write_text("devices = { simulations = 0 }\n" + CONFIG % 4)
    code, _, err = run(monkeypatch, capsys, "calibrate", "d.toml")
    assert code == 2
    assert "devices" in err
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--processes", "2")
    assert code == 2
    assert "not the one asked for" in err
    assert sorted(p.name for p in here.iterdir()) == ["c.toml", "d.toml"]
