"""The studies, in the smallest form that still goes through every part of them."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import calibrant as cal

STUDIES = Path(__file__).parents[1] / "studies"


def load(name):
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def siblings(monkeypatch):
    """A script finds the modules beside it."""
    monkeypatch.syspath_prepend(str(STUDIES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cells"), [("estimators_by_model", 2), ("horizons", 2), ("modes", 2), ("failures", 3), ("advice", 1)]
)
def test_a_study_in_its_smallest_form(name, cells, siblings, tmp_path, capsys):
    study = load(name)
    arguments = ["--tiny", "--out", str(tmp_path / "out")]
    study.main(arguments)
    printed = capsys.readouterr().out
    assert len(json.loads((tmp_path / "out.json").read_text())["cells"]) == cells
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    study.main(arguments)  # nothing is left to run
    assert printed.endswith(capsys.readouterr().out)


@pytest.mark.slow
def test_the_study_of_a_black_box_and_its_twin_in_its_smallest_form(siblings, tmp_path, capsys):
    study = load("black_box_sir")
    study.main(["--tiny", "--out", str(tmp_path / "out")])
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert len(cells) == 4
    assert all(cell["failed"] == 0 and np.isfinite(cell["objective"]) for cell in cells.values())
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert "energy test p = " in capsys.readouterr().out


def test_the_black_box_and_its_twin_are_one_process(siblings):
    """Means and spreads, in standard errors."""
    study = load("black_box_sir")
    jax_model = study.models(40, 6)["jax"]
    one = jax.vmap(lambda seed: cal.simulate(jax_model, jax_model.Params(**study.TRUTH), seed=seed, steps=6).outputs)
    theirs = one(cal.seeds(0, 4000))
    params = {**study.TRUTH, "initial": 5.0}
    ours = [study.epidemic(params, seed, agents=40, days=6) for seed in range(4000)]
    for name in ("infected", "recovered"):
        a, b = np.asarray(theirs[name], float), np.stack([x[name] for x in ours])
        for f in (lambda x: x, lambda x: (x - x.mean(0)) ** 2):
            error = np.sqrt((f(a).var(0) + f(b).var(0)) / 4000)
            assert np.all(np.abs(f(a).mean(0) - f(b).mean(0)) < 4.5 * error)


def test_the_energy_test_tells_two_groups_apart(siblings):
    study = load("black_box_sir")
    rng = np.random.default_rng(0)
    a, b = ([rng.normal(shift, 1, (50, 2)) for _ in range(4)] for shift in (0, 1))
    assert study.energy_test(a, b) == pytest.approx(2 / 70)  # the groups as they are, and exchanged
    assert study.energy_test(a[:2] + b[:2], a[2:] + b[2:]) > 0.3
    assert study.welch(np.array([1.0, 3.0]), np.array([4.0, 6.0])) == pytest.approx(-3 / np.sqrt(2))


def test_a_study_refuses_results_of_other_settings(siblings, tmp_path):
    study = load("horizons")
    (tmp_path / "out.json").write_text(json.dumps({"settings": {}, "cells": {}}))
    with pytest.raises(SystemExit, match="other settings"):
        study.main(["--tiny", "--out", str(tmp_path / "out")])


def test_rules_for_horizons_choose_by_what_each_has_seen(siblings):
    study = load("horizons")

    def got(bias2, noise2, cosine, spread, length, objective, cost=2.0):
        """Bias and noise as they are; direction, noise and length of what is clipped."""
        fit = {"objective": objective, "error": 0.5, "start": 10.0, "inside": 1, "truths": 3, "kl": 2.0}
        seen = {"cosine": cosine, "noise2": spread, "length": length}
        return {"bias2": bias2, "noise2": noise2, "clipped": seen, "fit": fit, "forward_runs": cost}

    cells = {
        "H = 0": got(0.8, 0.1, 0.95, 0.1, 0.1, 2.0),
        "H = 5": got(1.2, 0.5, 0.9, 10.0, 1.8, 1.0),
        "full": got(1e9, 1e20, 0.9, 100.0, 1.0, 9.0),
    }
    verdict = study.judged({f"sir|errors|{h}": x for h, x in cells.items()}, "sir", "errors")
    assert verdict["best"] == "H = 5"
    # Squared errors are 0.82, 1.3 and enormous; H = 0 is too short, and shares of the others are 0.82 and 0.52.
    # The advice does not offer H = 5, and of what it offers only the full horizon is sound.
    assert verdict["rules"] == {
        "error": ("H = 0", pytest.approx(1 / 9)),
        "clipped": ("H = 5", 0),
        "advised": ("full", pytest.approx(8 / 9)),
    }
    assert verdict["full"] == pytest.approx(8 / 9)
    assert verdict["error"] == pytest.approx(0.5 / 9)
    assert study.wrong_but_confident(cells["full"]["fit"])
    unsound = {"sir|errors|H = 0": cells["H = 0"], "sir|errors|full": got(4.0, 0.1, 1.0, 0.1, 3.0, 1.5)}
    assert study.judged(unsound, "sir", "errors")["rules"]["clipped"] == ("full", 0)  # 3 times is closer than a tenth
    unseen = study.judged({"sir|errors|full": got(None, None, None, None, None, 1.0)}, "sir", "errors")
    assert unseen["rules"]["clipped"] == ("differences", None)  # who has seen nothing chooses no horizon
    astray = got(0.1, 0.1, 0.7, 0.1, 1.0, 1.0)
    dear, cheap = got(0.1, 0.1, 0.9, 0.1, 1.0, 2.0, cost=9.0), got(0.1, 0.1, 0.85, 0.1, 1.0, 3.0)
    three = {"sir|errors|full": astray, "sir|errors|H = 2": dear, "sir|errors|H = 10": cheap}
    assert study.judged(three, "sir", "errors")["rules"]["advised"][0] == "H = 10"


@pytest.mark.slow
def test_the_study_of_estimators_goes_on_where_it_ended(siblings, tmp_path, monkeypatch, capsys):
    study = load("estimators")
    arguments = ["--tiny", "--structures", "mixed", "--only", "straight-through", "score function"]
    arguments += ["--out", str(tmp_path / "out")]
    study.main(arguments)
    printed = capsys.readouterr().out
    assert "derivative in log beta" in printed
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert set(cells) == {f"mixed|50|{name}" for name in ("reference", "forward", "straight-through", "score function")}
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"

    def again(*_):
        raise AssertionError("a cell that is there was run again")

    monkeypatch.setattr(study, "cell", again)
    study.main(arguments)
    assert capsys.readouterr().out.endswith(printed[printed.index("\nderivative in log beta") :])
    with pytest.raises(SystemExit):
        study.main([*arguments, "--simulations", "7"])


@pytest.mark.slow
def test_the_study_of_posterior_checks_in_its_smallest_form(tmp_path, capsys):
    study = load("posterior_checks")
    study.main(["--tiny", "--out", str(tmp_path / "out")])
    models = json.loads((tmp_path / "out.json").read_text())["models"]
    assert set(models) == {"normal", "random-walk"}
    assert all(m["exact"]["passed"] for m in models.values())
    assert not any(m["shifted by half"]["passed"] for m in models.values())
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert "random-walk, exact" in capsys.readouterr().out
