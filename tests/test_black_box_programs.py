"""External programs as models."""

import time
from pathlib import Path

import numpy as np
import pytest
from boxes import black_box, command

import calibrant as cal
from calibrant.black_box import Csv, Json


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        pytest.param(
            ["sh", "-c", 'printf "x,y\\n%s,1\\n%s,\\n" {mu} {seed}'], Csv(), id="as arguments, and a printed table"
        ),
        pytest.param(
            ["sh", "-c", 'printf "x\\n{mu}\\n{seed}\\n" > {directory}/out.csv'],
            Csv("out.csv"),
            id="as arguments, and a file",
        ),
        pytest.param(["sh", "-c", 'echo "{ \\"x\\": [{mu}, {seed}] }"'], Json(), id="as arguments, and printed JSON"),
        pytest.param(
            ["awk", "-F[:,} ]+", '{ print "[" $3 "," $(NF - 1) "]" }'],
            Json(),
            id="on standard input, and printed JSON",
        ),
        pytest.param(
            ["awk", "-F[:,} ]+", '{ print "[" $3 "," $(NF - 1) "]" }', "{parameters}"],
            Json(),
            id="in a file, and printed JSON",
        ),
    ],
)
def test_parameters_reach_a_program_and_its_outputs_come_back(arguments, output):
    outputs = (2,) if arguments[0] == "awk" else {"x": 2}
    model = command(arguments, output, outputs=outputs)
    out = cal.simulate(model, model.default_params, seed=4).outputs
    mu, seed = np.asarray(out if outputs == (2,) else out["x"])
    assert model.failures == []
    assert mu == 0.25
    same = black_box(lambda params, seed: np.array([seed]), outputs=(1,))
    assert seed == cal.simulate(same, same.default_params, seed=4).outputs[0]


def test_columns_of_a_program_s_table_become_an_array():
    text = 'printf "x[0],x[1],y\\n1,2,7\\n3,4,\\n"'
    model = command(["sh", "-c", text], Csv(), outputs={"x": (2, 2), "y": (1,)})
    out = cal.simulate(model, model.default_params, seed=0).outputs
    assert (out["x"].tolist(), out["y"].tolist()) == ([[1, 2], [3, 4]], [7])


@pytest.mark.parametrize(
    ("arguments", "output", "message"),
    [
        pytest.param(
            ["sh", "-c", "echo first >&2; echo no such file >&2; exit 3"],
            Json(),
            "sh ended with exit code 3: no such file",
            id="an exit code",
        ),
        pytest.param(["echo", "done"], Json(), "what the program wrote is no JSON", id="no JSON"),
        pytest.param(["echo", "y"], Csv(), "there is no column 'x'; the program wrote y", id="no column"),
        pytest.param(["printf", "x\\na\\nb\\n"], Csv(), "column 'x' holds what is no number", id="no number"),
        pytest.param(["true"], Csv("out.csv"), "the program wrote no out.csv that can be read", id="no file"),
    ],
)
def test_a_program_that_goes_wrong_is_a_failed_run_with_its_reason(arguments, output, message, tmp_path):
    model = command(arguments, output, keep_errors_in=tmp_path)
    assert np.all(np.isnan(cal.simulate(model, model.default_params, seed=0).outputs["x"]))
    assert model.failures[0].message.startswith(message)
    if arguments[0] == "sh":
        assert "first\nno such file\n" in model.failures[0].file.read_text()


def test_a_program_that_hangs_is_killed_with_all_it_started(tmp_path):
    script = f"sleep 60 & echo $! > {tmp_path}/child; wait"
    model = command(["sh", "-c", script], timeout=0.5)
    cal.simulate(model, model.default_params, seed=0).outputs["x"].block_until_ready()
    assert model.failures[0].message == "sh took more than 0.5 s and was killed"
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    for _ in range(100):  # until its parent has taken note
        if not child.exists() or child.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the child of a killed program lives on")
