"""Several processes over loopback: they learn what one does; where one is killed the others end, and one goes on."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

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


def _high_port():
    """A free one of those that JAX makes of a job's number."""
    for port in range(65535 - 2**12 + 1 + os.getpid() % 1000, 65535):
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("localhost", port))
            return port
    raise AssertionError("no free port")


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


def _scheduled(scheduler, i, port):
    """The environment that a scheduler gives process `i` of two on this machine."""
    if scheduler == "slurm":
        job = port - (65535 - 2**12 + 1)  # from which JAX makes the port
        return {
            "SLURM_JOB_ID": str(job),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i),
        }
    return {
        "OMPI_MCA_orte_hnp_uri": f"{(port - (65535 - 2**12 + 1)) * 2**12}.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(i),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(i),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "model", "mesh"), [("slurm", "sir", "1x2"), ("open-mpi", "random-walk", "2x1")])
def test_processes_find_one_another_by_what_their_scheduler_says(scheduler, model, mesh, here, monkeypatch, capsys):
    what = ("simulate", model, "--steps", "6")
    code, alone, _ = run(monkeypatch, capsys, *what)
    assert code == 0
    port = _high_port()
    command = [sys.executable, "-c", "from calibrant_launch import main; main()", *what, "--join"]
    processes = []
    for i in range(2):
        (here / str(i)).mkdir()
        out = ["--out", "x.csv"] if model == "random-walk" else []
        environment = os.environ | {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"} | _scheduled(scheduler, i, port)
        pipes: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([*command, *out], env=environment, cwd=here / str(i), **pipes))
    first, second = (p.communicate(timeout=120) for p in processes)
    assert [p.returncode for p in processes] == [0, 0], (first, second)
    assert (first[0] or (here / "0/x.csv").read_text()) == alone
    assert second[0] == ""
    assert list((here / "1").iterdir()) == []
    assert f"devices: {mesh}" in first[1]
    assert "devices" not in second[1]


@pytest.mark.slow
def test_checks_and_comparisons_over_two_processes(here, monkeypatch, capsys):
    (here / "c.toml").write_text(CONFIG % 4)
    assert run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet", "--out", "run")[0] == 0
    for arguments in (
        ("gradients", "run", "--points", "2", "--repeats", "4", "--out", "x.png"),
        ("check", "run", "--datasets", "10", "--quiet", "--devices", "1x2", "--choose-weight"),
        ("compare", "c.toml", "--methods", "gvi,point,smc-abc,nuts,mala", "--budget", "12000", "--quiet"),
    ):
        processes = _start(2, *arguments)
        said = _ended(processes, 1800)
        assert [p.returncode for p in processes] == [0, 0], said
    for made in ("x.png", "run/check.json", "run/check-weight.png", "comparisons/c/comparison.json"):
        assert (here / made).is_file()
    rows = json.loads((here / "comparisons/c/comparison.json").read_text())["rows"]
    assert len(rows) == 5
    assert all(row["successful"] for row in rows)
    assert sorted(p.name for p in here.iterdir()) == ["c.toml", "comparisons", "run", "x.json", "x.png"]


def _ended(processes, within):
    try:
        return [p.communicate(timeout=within)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()


def _history(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([[row["loss"], row["kl"]] for row in rows])


def _divided(out, count, *arguments):
    """Start `divided.py` on so many processes."""
    script = str(Path(__file__).with_name("divided.py"))
    where = ["--processes", str(count), "--coordinator", f"localhost:{_free_port()}"]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
    return [
        subprocess.Popen(
            [sys.executable, script, str(out), *arguments, *where, "--process", str(i)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "arguments", "rtol"),
    [(2, [], 1e-5), (4, [], 1e-5), (2, ["--x64"], 1e-10), (4, ["--x64"], 1e-10)],
    ids=["2-float32", "4-float32", "2-float64", "4-float64"],
)
def test_a_bundled_model_is_simulated_and_differentiated_the_same_over_processes(count, arguments, rtol, tmp_path):
    alone, together = tmp_path / "alone.npz", tmp_path / "together.npz"
    started = _divided(alone, 1, *arguments) + _divided(together, count, *arguments)
    said = _ended(started, 1200)
    assert [p.returncode for p in started] == [0] * (1 + count), said
    one, many = np.load(alone), np.load(together)
    assert sorted(one) == sorted(many)
    assert len(one) >= 9
    for name in one:
        if " outputs" in name:  # decisions
            np.testing.assert_array_equal(many[name], one[name], err_msg=name)
        else:
            atol = rtol * np.max(np.abs(one[name]))
            np.testing.assert_allclose(many[name], one[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.optimised  # as the processes are
@pytest.mark.parametrize("mode", ["reverse", "auto"])
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


@pytest.mark.slow
def test_a_mistake_that_the_first_process_sees_ends_all(here):
    (here / "c.toml").write_text(CONFIG % 4)
    (here / "run").mkdir()
    (here / "run/manifest.json").write_text("{}")
    processes = _start(2, "calibrate", "c.toml", "--quiet", "--out", "run", "--devices", "1x2")
    first, _ = _ended(processes, 60)
    assert "run exists; choose another --out" in first
    assert processes[0].returncode == 2
    assert processes[1].returncode != 0


@pytest.mark.slow
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


@pytest.mark.slow
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
        pytest.param(("--processes", "2"), "belong together", id="how many without which"),
        pytest.param(
            ("--processes", "two", "--process", "0", "--coordinator", "x:1"), "whole numbers", id="no whole number"
        ),
        pytest.param(
            ("--processes", "2", "--process", "2", "--coordinator", "x:1"),
            "--process is from 0 to 1, got 2",
            id="the third of two",
        ),
        pytest.param(("--join", "--processes", "2"), "leave --processes", id="both ways at once"),
        pytest.param(("--join",), "could not join", id="nobody to join"),
    ],
)
def test_a_process_that_cannot_join_is_refused(arguments, expected, monkeypatch, capsys):
    from calibrant_launch import main

    monkeypatch.setenv("XLA_FLAGS", "")  # which it sets
    monkeypatch.setattr("sys.argv", ["calibrant", "calibrate", "x.toml", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (1, 2)
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "options", "expected"),
    [
        pytest.param("", ("--devices", "3"), "simulations x agents such as 2x4", id="one number"),
        pytest.param("", ("--devices", "1x9"), "there are 8", id="more than there are"),
        pytest.param("", ("--devices", "1x7"), "40 agents", id="agents that do not divide"),
        pytest.param("devices = { simulations = 0 }\n", (), "devices", id="none, in a configuration"),
        pytest.param("", ("--processes", "2"), "not the one asked for", id="other processes than there are"),
    ],
)
def test_devices_that_cannot_be_had_are_refused(extra, options, expected, here, monkeypatch, capsys):
    (here / "c.toml").write_text(extra + CONFIG % 4)
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", *options)
    assert code == 2
    assert expected in err
    assert sorted(p.name for p in here.iterdir()) == ["c.toml"]
