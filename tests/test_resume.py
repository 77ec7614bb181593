"""Runs that are killed, at any moment, and go on to the same bits."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import toys
from commands import SMALL, run
from killing import Killed, Killer

import calibrant as cal
from calibrant import _files
from calibrant._book import Book
from calibrant._checkpoints import fingerprint
from calibrant.inference import UpdateRecord


def problem():
    return cal.Problem(toys.Flips(), DATA, cal.losses.MeanSquaredError(), steps=3)


DATA = cal.simulate(toys.Flips(), toys.Flips().default_params, seed=0, steps=3).outputs
PRIORS = {"p": dist.Normal(0.0, 1.0), "q": dist.Normal(0.0, 1.0)}
METHOD = cal.GVI(
    max_updates=40,
    evaluate_every=20,
    evaluation_simulations=20,
    kl_samples=50,
    estimator=cal.estimators.REBAR(),
    family=cal.posteriors.FullRankGaussian(),
)


def calibrate(checkpoints=None, progress=False, method=METHOD, **how):
    return cal.calibrate(
        problem(),
        PRIORS,
        method=method,
        seed=3,
        progress=progress,
        check_gradients=False,
        checkpoints=checkpoints,
        **how,
    )


@pytest.fixture(scope="module")
def uninterrupted():
    return calibrate()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The checkpoints of a run that was killed."""
    folder = tmp_path_factory.mktemp("killed") / "c"
    with pytest.raises(Killed):
        calibrate(cal.Checkpoints(folder, every=0.0), Killer(2))
    return folder


def same(one, two):
    for a, b in zip(*(jax.tree.leaves(eqx.filter(x.posterior, eqx.is_array)) for x in (one, two)), strict=True):
        np.testing.assert_array_equal(a, b)
    for name, x in one.updates.items():
        np.testing.assert_array_equal(x, two.updates[name])
    assert one.history == two.history
    assert one.evaluation == two.evaluation
    assert (one.n_simulations, one.n_failed, one.reason) == (two.n_simulations, two.n_failed, two.reason)


def test_a_run_that_is_killed_between_updates_goes_on_to_the_same_bits(tmp_path, uninterrupted):
    for after in (1, 3, 7, 12, 2, 5):
        checkpoints = cal.Checkpoints(tmp_path / "c", every=0.0)
        try:
            with pytest.raises(Killed):
                calibrate(checkpoints, Killer(after))
        except pytest.fail.Exception:  # it ended before it could be killed
            break
        assert len(list((tmp_path / "c").glob("*.h5"))) <= 2
    result = calibrate(cal.Checkpoints(tmp_path / "c"))
    same(result, uninterrupted)


@pytest.mark.parametrize(
    "changed",
    [{"estimator": cal.Corrected()}, {"estimator": cal.estimators.Pathwise(), "simulations": 1}],
    ids=["what was remembered of differences", "the running signal"],
)
def test_what_a_gradient_remembers_survives_a_kill(changed, tmp_path):
    method = dataclasses.replace(METHOD, **changed)
    whole = calibrate(None, method=method)
    assert np.any(np.isfinite(whole.updates["signal_to_noise"]))
    with pytest.raises(Killed):
        calibrate(cal.Checkpoints(tmp_path / "c", every=0.0), Killer(6), method=method)
    same(calibrate(cal.Checkpoints(tmp_path / "c"), method=method), whole)


@pytest.mark.parametrize(
    "at",
    [
        pytest.param("mkstemp", id="as it opens a file"),
        pytest.param("fsync", id="as it flushes a file"),
        pytest.param("replace", id="as it puts a file in its place"),
    ],
)
def test_a_run_that_is_killed_while_it_writes_goes_on_to_the_same_bits(at, tmp_path, uninterrupted, monkeypatch):
    where = _files.tempfile if at == "mkstemp" else _files.os
    real, calls = getattr(where, at), []
    for number in (1, 2, 6):

        def killing(*arguments, number=number, **how):
            calls.append(1)
            if len(calls) == number:
                raise Killed
            return real(*arguments, **how)

        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(where, at, killing)
            with pytest.raises(Killed):
                calibrate(cal.Checkpoints(tmp_path / "c", every=0.0))
    same(calibrate(cal.Checkpoints(tmp_path / "c")), uninterrupted)
    assert not list((tmp_path / "c").glob(".*.part"))  # what was half written is cleaned up


def test_an_interrupt_leaves_a_checkpoint_of_where_it_was(tmp_path, uninterrupted):
    class Interrupt(Killer):
        def advance(self, updates, message):
            try:
                super().advance(updates, message)
            except Killed:
                raise KeyboardInterrupt from None

    stopped = calibrate(cal.Checkpoints(tmp_path / "c", every=1e9), Interrupt(13))
    assert stopped.result is cal.Result.INTERRUPTED
    assert 20 < len(stopped.updates["loss"]) < 40
    assert stopped.history[-1]["update"] == len(stopped.updates["loss"])
    same(calibrate(cal.Checkpoints(tmp_path / "c")), uninterrupted)


def test_a_full_disk_does_not_end_a_run(tmp_path, uninterrupted, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    told = Killer(0)
    monkeypatch.setattr(_files.os, "replace", full)
    same(calibrate(cal.Checkpoints(tmp_path / "c", every=0.0), told), uninterrupted)
    assert len([note for note in told.notes if "No space left" in str(note)]) == 1
    assert [p.name for p in (tmp_path / "c").iterdir()] == [".lock"]


def test_a_damaged_checkpoint_is_passed_over(tmp_path, uninterrupted):
    with pytest.raises(Killed):
        calibrate(cal.Checkpoints(tmp_path / "c", every=0.0), Killer(9))
    newest = max((tmp_path / "c").glob("*.h5"))
    raw = bytearray(newest.read_bytes())
    middle = raw.find(b"history")
    raw[middle] ^= 1  # one bit
    newest.write_bytes(raw)
    same(calibrate(cal.Checkpoints(tmp_path / "c")), uninterrupted)


def test_checkpoints_that_are_all_damaged_are_refused(killed, tmp_path):
    shutil.copytree(killed, tmp_path / "c")
    for path in (tmp_path / "c").glob("*.h5"):
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"No checkpoint in .* can be read"):
        calibrate(cal.Checkpoints(tmp_path / "c"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param(
            {"method": dataclasses.replace(METHOD, weight=2.0)}, "a run with another method", id="another method"
        ),
        pytest.param({"seed": 4}, "a run with another seed", id="another seed"),
        pytest.param(
            {"problem": cal.Problem(toys.Flips(), DATA + 1, cal.losses.MeanSquaredError(), steps=3)},
            "another model, data or loss",
            id="other data",
        ),
    ],
)
def test_the_checkpoints_of_a_run_are_refused_with(changed, message, killed):
    run = {"problem": problem(), "priors": PRIORS, "method": METHOD, "seed": 3, **changed}
    with pytest.raises(ValueError, match=message):
        cal.calibrate(**run, checkpoints=cal.Checkpoints(killed), progress=False)


def test_two_processes_cannot_write_to_one_directory(tmp_path):
    with cal.Checkpoints(tmp_path / "c"), pytest.raises(ValueError, match="Another process is running"):
        calibrate(cal.Checkpoints(tmp_path / "c"))


def test_fingerprints_tell_runs_apart_and_know_them_again():
    assert fingerprint(METHOD) == fingerprint(eqx.tree_at(lambda m: m.weight, METHOD, 1.0))
    assert fingerprint(METHOD) != fingerprint(eqx.tree_at(lambda m: m.weight, METHOD, 1.5))
    assert fingerprint(problem()) == fingerprint(problem())
    assert fingerprint(jnp.zeros(3)) != fingerprint(jnp.zeros((3, 1)))


def test_failures_are_counted_and_a_bounded_sample_of_them_kept():
    book, rng = Book(3000, 2), np.random.default_rng(0)
    finite, z = rng.random((3000, 4)) < 0.7, rng.normal(size=(3000, 4, 2))
    scalars = [jnp.asarray(rng.normal(size=3000)) for _ in range(5)]
    for rows in (slice(0, 7), slice(7, 1000), slice(1000, 3000)):
        book.add(UpdateRecord(*(x[rows] for x in scalars), jnp.asarray(z[rows]), jnp.asarray(finite[rows])))
    assert (book.updates, book.seen, book.failed) == (3000, 12_000, np.sum(~finite))
    np.testing.assert_array_equal(book.scalars(2990)["failed"], np.sum(~finite[2990:], axis=1))
    np.testing.assert_allclose(book.failures, z[~finite], rtol=1e-6)
    assert 1000 < len(book.successes) <= 4096
    again = Book(3000, 2)
    again.restore(book.arrays())
    for name, x in book.arrays().items():
        np.testing.assert_array_equal(x, again.arrays()[name])


CONFIG = SMALL.format(data="synthetic = { seed = 1 }").replace("max_updates = 20", "max_updates = 60")


@contextlib.contextmanager
def process_that_is_killed(here):
    """A real process that calibrates to `r`, from its first checkpoint to a real SIGKILL."""
    (here / "c.toml").write_text(CONFIG)
    main = [sys.executable, "-c", "from calibrant.cli import main; main()"]
    process = subprocess.Popen(
        [*main, "calibrate", "c.toml", "--quiet", "--out", "r"], env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    while process.poll() is None and not list(here.glob("r.unfinished/checkpoints/*.h5")):
        time.sleep(0.02)
    try:
        yield
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_that_another_process_is_making_is_refused(here, monkeypatch, capsys):
    with process_that_is_killed(here):
        code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet", "--out", "r")
    assert code == 2
    assert "Another process is running" in err


@pytest.mark.slow
@pytest.mark.optimised  # as the process that is killed
def test_the_command_resumes_a_killed_process(here, monkeypatch, capsys):
    """It is killed, then interrupted, and ends as the whole run does."""
    with process_that_is_killed(here):
        pass
    code, _, _ = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet", "--out", "whole")
    assert code == 0
    interrupted = []

    def interrupt(self, problem, state, updates, real=cal.GVI.step):
        if int(state.update) >= 30 and not interrupted:
            interrupted.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, problem, state, updates)

    with monkeypatch.context() as patch:
        patch.setattr(cal.GVI, "step", interrupt)
        code, out, _ = run(monkeypatch, capsys, "calibrate", "--resume", "r", "--quiet")
    assert code == 130
    assert "calibrant calibrate --resume r" in out
    assert (here / "r/report.html").is_file()
    assert json.loads((here / "r/manifest.json").read_text())["result"]["code"] == "interrupted"

    code, out, err = run(monkeypatch, capsys, "calibrate", "--resume", "r", "--quiet")
    assert (code, err) == (0, "")
    assert not (here / "r.unfinished").exists()
    names = {p.name for p in (here / "r").iterdir()}
    assert names == {p.name for p in (here / "whole").iterdir()}
    for name in ("flow.h5", "metrics.jsonl"):
        assert (here / "r" / name).read_bytes() == (here / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("calibrate", "c.toml", "--quiet", "--out", "r"), id="begun anew"),
        pytest.param(("simulate", "r"), id="simulated"),
        pytest.param(("report", "r"), id="reported"),
    ],
)
def test_a_run_that_was_stopped_is_to_be_resumed_before_it_is(arguments, here, monkeypatch, capsys):
    (here / "c.toml").write_text(CONFIG)
    (here / "r.unfinished").mkdir()
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "--resume r" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("--resume", "nowhere"), "holds no run that was stopped", id="of no run"),
        pytest.param(("--resume", "whole"), "nothing to go on with", id="of a run that ended"),
        pytest.param(("--resume", "odd"), "holds no run that had begun", id="of a run that had not begun"),
        pytest.param(("c.toml", "--resume", "r"), "leave everything else out", id="with a configuration"),
        pytest.param(("--resume", "r", "--seed", "1"), "leave everything else out", id="with a seed"),
        pytest.param((), "or --resume and a run directory", id="of neither a run nor a configuration"),
    ],
)
def test_a_resumption_is_refused(arguments, message, here, monkeypatch, capsys):
    (here / "odd.unfinished").mkdir()
    (here / "whole").mkdir()
    (here / "whole/manifest.json").write_text("{}")
    code, _, err = run(monkeypatch, capsys, "calibrate", *arguments)
    assert code == 2
    assert message in " ".join(err.split())
