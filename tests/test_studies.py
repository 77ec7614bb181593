"""The studies, in the smallest form that still goes through every part of them."""

import importlib.util
import json
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[1] / "studies"


def load(name):
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_study_of_estimators_and_its_resumption(tmp_path, monkeypatch, capsys):
    study = load("estimators")
    arguments = ["--tiny", "--structures", "mixed", "--only", "straight-through", "score function"]
    arguments += ["--out", str(tmp_path / "out")]
    study.main(arguments)
    printed = capsys.readouterr().out
    assert "derivative in log beta" in printed
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert set(cells) == {f"mixed|50|{name}" for name in ("reference", "straight-through", "score function")}
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"

    def again(*_):
        raise AssertionError("a cell that is there was run again")

    monkeypatch.setattr(study, "cell", again)
    study.main(arguments)
    assert capsys.readouterr().out.endswith(printed[printed.index("\nderivative in log beta") :])
    with pytest.raises(SystemExit):
        study.main([*arguments, "--simulations", "7"])
