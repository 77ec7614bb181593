"""Simulators outside of JAX that a configuration names."""

import datetime as dt

import numpy as np
import pytest

from calibrant._config import ConfigError, parse_config

CONFIG = """
[model]
name = "python"
[model.options]
function = "walk:run"
outputs = { x = 4 }
workers = 1
parameters = { mu = { default = 0.5, units = "m" }, rates = [1.0, 2.0] }
start = 2020-03-01
[data]
synthetic = { seed = 1 }
[loss]
name = "gaussian"
scale = 1.0
[parameters.mu]
prior = { distribution = "Normal", loc = 0.0, scale = 1.0 }
[method]
estimator = "flow-score"
"""


def test_a_configuration_names_a_python_function(here):
    (here / "walk.py").write_text(
        "def run(params, seed):\n    return {'x': [params['mu'], *params['rates'], seed % 7]}\n"
    )
    problem, prior, _ = parse_config(CONFIG, "config").build(here)
    assert prior.names == ("mu",)
    assert problem.model.Params.describe()["mu"].units == "m"
    assert problem.model.dates[-1] == dt.date(2020, 3, 4)
    assert problem.data["x"][:3].tolist() == [0.5, 1.0, 2.0]
    workers = parse_config(CONFIG.replace("workers = 1", "workers = 2"), "config").build(here)[0]
    np.testing.assert_array_equal(workers.data["x"], problem.data["x"])


def test_a_configuration_names_a_command(here):
    (here / "out.csv").write_text("x\n1\n2\n3\n4\n")
    text = CONFIG.replace('"python"', '"command"').replace(
        'function = "walk:run"',
        'command = ["sh", "-c", "cp out.csv {directory}"]\noutput = "csv"\noutput_file = "out.csv"',
    )
    problem, _, _ = parse_config(text, "config").build(here)
    assert problem.data["x"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param(
            '"flow-score"', '"straight-through"', r"BlackBox has no derivative; use estimator", id="a derivative"
        ),
        pytest.param("walk:run", "walk:walk", "model.options: .*has no attribute 'walk'", id="no such function"),
        pytest.param("walk:run", "nowhere:run", "model.options: .*No module named 'nowhere'", id="no such module"),
        pytest.param("walk:run", "walk", "'module:function', got 'walk'", id="a module without a function"),
        pytest.param("x = 4", "x = 0", "model.options.outputs.x: ", id="an output at no times"),
        pytest.param("x = 4", "x = []", r"model.options: The shape of output 'x'", id="an output without a shape"),
        pytest.param(
            "workers = 1", "worker = 1", "model.options.worker: there is no such field", id="a misspelt option"
        ),
        pytest.param("outputs = { x = 4 }", "", "model.options.outputs: Field required", id="no outputs"),
        pytest.param("[1.0, 2.0]", '"a"', "model.options.parameters.rates: ", id="a default that is no number"),
        pytest.param(
            '"python"',
            '"pyton"',
            "no model 'pyton'.*command, python, torch, or module:Class",
            id="a misspelt kind of model",
        ),
        pytest.param('"python"', '"command"', "model.options.command: Field required", id="a command without one"),
    ],
)
def test_a_configuration_of_a_black_box_that_cannot_run_is_refused(old, new, message, here):
    (here / "walk.py").write_text("def run(params, seed):\n    return {'x': [params['mu']] * 4}\n")
    with pytest.raises(ConfigError, match=message):
        parse_config(CONFIG.replace(old, new), "config").build(here)
