"""`calibrant check`, from a run directory to its report."""

import json
import shutil

import numpy as np
import pytest
from commands import WALK, run

from calibrant.cli import main


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "small.toml").write_text(WALK)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["calibrant", "calibrate", "small.toml", "--out", "r", "--quiet"])
        with pytest.raises(SystemExit) as exit_:
            main()
    assert not exit_.value.code
    return folder


@pytest.fixture
def a_run(calibrated, here):
    """A run directory, in the current directory."""
    shutil.copytree(calibrated, here, dirs_exist_ok=True)
    return here / "r"


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param((), id="at the weight of the run"),
        pytest.param(("--choose-weight",), id="at a weight that it chooses", marks=pytest.mark.slow),
    ],
)
def test_a_check_of_a_run_writes_its_verdict_figures_and_report(weight, a_run, monkeypatch, capsys):
    arguments = ["check", "r", "--datasets", "12", "--updates", "4", "--at-once", "12", "--fast", *weight]
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 0, err
    found = json.loads((a_run / "check.json").read_text())
    assert found["calibration"]["data_sets"] == 12
    assert found["refits"]["updates"] == 4
    assert found["likelihood"] is False
    assert found["importance"] is None
    assert "generalised posterior at this weight" in found["verdict"]
    assert found["weight"] == 0.01
    assert set(found["calibration"]["parameters"]) == {"p"}
    ranks = np.array(list(found["calibration"]["ranks"].values()))
    assert ranks.shape == (1, 12)
    assert not weight or len(found["weight_search"]["steps"]) >= 1
    for name in ("ranks", "coverage", "predictive", "identifiability", "sensitivity", *(["weight"] if weight else [])):
        assert (a_run / f"check-{name}.png").read_bytes()[:4] == b"\x89PNG"
    report = (a_run / "report.html").read_text()
    assert "Can it be trusted?" in report
    assert found["verdict"].split(":")[0] in report
    assert "Refitting" in err
    assert "│ p " in out
    # The report is written anew with the check in it.
    assert run(monkeypatch, capsys, "report", "r")[0] == 0
    assert "Can it be trusted?" in (a_run / "report.html").read_text()


def test_a_report_of_a_run_with_a_broken_check_is_refused(a_run, monkeypatch, capsys):
    (a_run / "check.json").write_text("{}")
    code, _, err = run(monkeypatch, capsys, "report", "r")
    assert code == 2
    assert "run `calibrant check` again" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["nowhere"], "nowhere is no run directory", id="of no run"),
        pytest.param(["r", "--nominal", "2"], "--nominal is a probability", id="of a coverage above 1"),
        pytest.param(["r", "--out", "small.toml"], "small.toml is a file", id="written to a file"),
    ],
)
def test_a_check_is_refused(arguments, message, here, monkeypatch, capsys):
    (here / "small.toml").write_text("")
    code, out, err = run(monkeypatch, capsys, "check", *arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
