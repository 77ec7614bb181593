"""`calibrant check`, from a run directory to its report."""

import json

import numpy as np
import pytest
from commands import SMALL, run

pytestmark = pytest.mark.usefixtures("unoptimised")


@pytest.fixture
def a_run(here, monkeypatch, capsys):
    text = SMALL.format(data="synthetic = { seed = 1 }") + 'posterior = "full-rank-gaussian"\n'
    (here / "small.toml").write_text(text)
    assert run(monkeypatch, capsys, "calibrate", "small.toml", "--out", "r", "--quiet")[0] == 0
    return here / "r"


def test_a_check_of_a_run(a_run, monkeypatch, capsys):
    arguments = ["check", "r", "--datasets", "12", "--updates", "4", "--at-once", "12", "--fast", "--choose-weight"]
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 0, err
    found = json.loads((a_run / "check.json").read_text())
    assert found["calibration"]["data_sets"] == 12
    assert found["refits"]["updates"] == 4
    assert found["likelihood"] is False
    assert found["importance"] is None
    assert "generalised posterior at this weight" in found["verdict"]
    assert found["weight"] == 0.01
    assert set(found["calibration"]["parameters"]) == {"beta", "gamma"}
    ranks = np.array(list(found["calibration"]["ranks"].values()))
    assert ranks.shape == (2, 12)
    assert len(found["weight_search"]["steps"]) >= 1
    for name in ("ranks", "coverage", "predictive", "identifiability", "sensitivity", "weight"):
        assert (a_run / f"check-{name}.png").read_bytes()[:4] == b"\x89PNG"
    report = (a_run / "report.html").read_text()
    assert "Can it be trusted?" in report
    assert found["verdict"].split(":")[0] in report
    assert "Refitting" in err
    assert "beta" in out
    # The report is written anew with the check in it, and a broken check is said to be broken.
    assert run(monkeypatch, capsys, "report", "r")[0] == 0
    assert "Can it be trusted?" in (a_run / "report.html").read_text()
    (a_run / "check.json").write_text("{}")
    code, _, err = run(monkeypatch, capsys, "report", "r")
    assert code == 2
    assert "run `calibrant check` again" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no run directory"),
        (["r", "--nominal", "2"], "--nominal is a probability"),
        (["r", "--out", "small.toml"], "small.toml is a file"),
    ],
)
def test_mistakes(arguments, message, here, monkeypatch, capsys):
    (here / "small.toml").write_text("")
    code, out, err = run(monkeypatch, capsys, "check", *arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
