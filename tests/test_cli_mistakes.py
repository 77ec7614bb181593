"""How mistakes on the command line end: in one sentence, exit code 2, and nothing left behind."""

import pytest
from commands import JUNE, SMALL, WALK, run

BAD = {
    "no TOML": ("[model", "no valid TOML"),
    "an unknown table": (SMALL.format(data="synthetic = { seed = 1 }") + "\n[mehtod]\nx = 1\n", "mehtod"),
    "an unknown model": (SMALL.replace('"sir"', '"sirr"').format(data="synthetic = { seed = 1 }"), "no model 'sirr'"),
    "an unknown option of a model": (
        SMALL.replace("n_agents", "agentz").format(data="synthetic = { seed = 1 }"),
        "agentz",
    ),
    "a module that is not there": (
        SMALL.replace('"sir"', '"nowhere:X"').format(data="synthetic = { seed = 1 }"),
        "nowhere",
    ),
    "no data": (SMALL.format(data=""), "exactly one"),
    "a data file that is not there": (SMALL.format(data='file = "none.csv"\ncolumns = { infected = "a" }'), "none.csv"),
    "a column that is not there": (SMALL.format(data='file = "d.csv"\ncolumns = { infected = "a" }'), "no column 'a'"),
    "a word in a column": (SMALL.format(data='file = "d.csv"\ncolumns = { infected = "text" }'), "line 2"),
    "data of another length than the outputs": (
        SMALL.format(data='file = "d.csv"\ncolumns = { infected = "x" }'),
        "equal shape",
    ),
    "data of an unknown output": (SMALL.format(data='file = "d.csv"\ncolumns = { infekted = "x" }'), "infekted"),
    "an unknown loss": (SMALL.replace("log-mean", "lag-mean").format(data="synthetic = { seed = 1 }"), "lag-mean"),
    "negative weight": (SMALL.replace("0.01", "-1").format(data="synthetic = { seed = 1 }"), "weight"),
    "an unknown parameter": (
        SMALL.format(data="synthetic = { seed = 1 }") + "\n[parameters.betta]\nvalue = 1.0\n",
        "betta",
    ),
    "an unknown distribution": (
        SMALL.format(data="synthetic = { seed = 1 }") + '\n[parameters.beta]\nprior = { distribution = "Unifrom" }\n',
        "Unifrom",
    ),
    "a distribution with its bounds the wrong way round": (
        SMALL.format(data="synthetic = { seed = 1 }")
        + '\n[parameters.beta]\nprior = { distribution = "Uniform", low = 2, high = 1 }\n',
        "Uniform cannot be made",
    ),
    "a temperature that starts and does not end": (
        SMALL.format(data="synthetic = { seed = 1 }") + "estimator = 'gumbel-softmax'\ntemperature = { from = 1.0 }\n",
        "temperature",
    ),
    "a temperature without a relaxation": (
        SMALL.format(data="synthetic = { seed = 1 }") + "temperature = 0.5\n",
        "temperature",
    ),
    "a memory without a planner": (SMALL.format(data="synthetic = { seed = 1 }") + "memory = 2\n", "the mode auto"),
    "a number that a planner chooses": (
        SMALL.format(data="synthetic = { seed = 1 }") + 'mode = "auto"\nsimulations_at_once = 2\n',
        "chooses simulations_at_once",
    ),
    "less memory than one simulation needs": (
        WALK + 'mode = "auto"\nmemory = 1e-9\n',
        "GiB are allowed; allow more `memory`",
    ),
    "a step without differences": (
        SMALL.format(data="synthetic = { seed = 1 }") + "step = 0.5\n",
        "finite-differences",
    ),
    "a horizon without a derivative": (
        SMALL.format(data="synthetic = { seed = 1 }") + 'estimator = "flow-score"\nhorizon = { sliding = 1 }\n',
        "no effect",
    ),
    "infinite weight": (SMALL.replace("0.01", "inf").format(data="synthetic = { seed = 1 }"), "weight"),
    "negative counts": (SMALL.format(data='file = "d.csv"\ncolumns = { infected = "minus" }'), "at least 0"),
    "two numbers for one parameter": (
        SMALL.format(data="synthetic = { seed = 1 }") + "\n[parameters.beta]\nvalue = [1.0, 2.0]\n",
        "shape",
    ),
    "a negative weight of an output": (
        SMALL.format(data="synthetic = { seed = 1 }") + "\n[loss.weights]\ninfected = -1\n",
        "loss.weights",
    ),
    "a loss for all outputs and one for each": (
        SMALL.format(data="synthetic = { seed = 1 }") + '\n[loss.streams.infected]\nname = "poisson"\n',
        "either a name or streams",
    ),
    "an abstract distribution": (
        SMALL.format(data="synthetic = { seed = 1 }")
        + '\n[parameters.beta]\nprior = { distribution = "Distribution" }\n',
        "Distribution cannot be made",
    ),
    "a prior without width": (
        SMALL.format(data="synthetic = { seed = 1 }")
        + '\n[parameters.beta]\nprior = { distribution = "Delta", v = 1 }\n',
        "Delta has no width",
    ),
    "a table where a prior takes a number": (
        SMALL.format(data="synthetic = { seed = 1 }")
        + '\n[parameters.beta]\nprior = { distribution = "Normal", loc = { a = 1 } }\n',
        "Normal cannot be made",
    ),
    "an infinite horizon": (SMALL.format(data="synthetic = { seed = 1 }") + "horizon = { sliding = inf }\n", "sliding"),
    "dates without a calendar": (
        SMALL.format(data='file = "d.csv"\ncolumns = { infected = "x" }\ndate_column = "x"'),
        "no calendar",
    ),
    "bundled streams of a file": (
        SMALL.format(data='file = "d.csv"\ncolumns = { infected = "x" }\nstreams = ["infected"]'),
        "streams belongs to",
    ),
    "weights of outputs without names": (
        WALK + "\n[loss.weights]\nx = 1\n",
        "no named streams",
    ),
    "a number of steps and a last date": (
        JUNE.replace('name = "june"', 'name = "june"\nsteps = 5'),
        "give one",
    ),
    "a share that is a column too": (
        JUNE.replace("[loss]", '[data.shares.infections]\nfile = "d.csv"\npositive = "x"\ntested = "text"\n[loss]'),
        "both in columns and in shares",
    ),
    "rows selected without dates": (
        SMALL.format(data='file = "d.csv"\ncolumn = "x"\nselect = { a = "b" }'),
        "select needs",
    ),
    "a binomial of counts": (JUNE.replace("log-mean-squared-error", "binomial"), "give them in data.shares"),
    "a binomial of sums over periods": (
        JUNE.replace('name = "log-mean-squared-error"', 'name = "binomial"\nevery = 7'),
        "shares cannot be added up",
    ),
    "a horizon of one and a half steps": (
        SMALL.format(data="synthetic = { seed = 1 }") + "horizon = { sliding = 1.5 }\n",
        "whole number",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_configuration_is_refused_in_one_sentence_and_leaves_nothing_behind(name, here, monkeypatch, capsys):
    text, expected = BAD[name]
    (here / "d.csv").write_text("x,text,minus,date,cases\n1,hello,-1,2020-03-01,1\n2,3,4,2020-03-02,2\n")
    (here / "c.toml").write_text(text)
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet")
    assert code == 2
    assert expected in err
    assert err.startswith("calibrant: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("calibrate", "nothing.toml"), id="calibrate a file that is not there"),
        pytest.param(("report", "nowhere"), id="report a run that is not there"),
        pytest.param(("simulate", "sirr"), id="simulate an unknown model"),
        pytest.param(("simulate", "sir", "--set", "beta"), id="set a parameter to nothing"),
        pytest.param(("simulate", "sir", "--set", "beta=x"), id="set a parameter to a letter"),
        pytest.param(("simulate", "sir", "--set", "betta=1"), id="set an unknown parameter"),
        pytest.param(("simulate", "sir", "--set", "beta=nan"), id="set a parameter to no number"),
        pytest.param(("simulate", "sir", "--out", "."), id="write outputs to a directory"),
        pytest.param(("calibrate", "june-london"), id="calibrate London without its data"),
        pytest.param(("calibrate", "june-town", "--size", "100", "--scale", "0.1"), id="give a size and a scale"),
        pytest.param(("gradients", "nothing.toml"), id="look at gradients of a file that is not there"),
        pytest.param(("gradients", "june-london"), id="look at gradients of London without its data"),
        pytest.param(("gradients", "boarding-school", "--out", "."), id="write a picture to a directory"),
        pytest.param(("gradients", "boarding-school", "--out", "health.json"), id="write a picture over its numbers"),
        pytest.param(("world", "build", "w.h5", "--size", "1e12"), id="build a world of too many people"),
        pytest.param(("world", "build", "w.h5", "--size", "nan"), id="build a world of no number of people"),
    ],
)
def test_the_command_refuses_to(arguments, here, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "Traceback" not in err
    assert err.strip()


@pytest.mark.parametrize("name", ["n" * 250, "file/run"], ids=["a name too long", "a directory in a file"])
def test_a_place_that_cannot_be_written_is_refused_first(name, here, monkeypatch, capsys):
    (here / "file").write_text("")
    (here / "c.toml").write_text(SMALL.format(data="synthetic = { seed = 1 }"))
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet", "--out", name)
    assert code == 2
    assert "choose another --out" in err
    assert sorted(p.name for p in here.iterdir()) == ["c.toml", "file"]


@pytest.mark.parametrize(
    "text", ["[]", '{"schema": 1}', "{"], ids=["a list", "a schema and nothing else", "half of a manifest"]
)
def test_a_damaged_manifest_is_refused(text, here, monkeypatch, capsys):
    (here / "run").mkdir()
    for name, content in (("manifest.json", text), ("config.toml", ""), ("metrics.jsonl", "")):
        (here / "run" / name).write_text(content)
    code, _, err = run(monkeypatch, capsys, "report", "run")
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("def f(:", "cannot be imported (SyntaxError", id="is no Python"),
        pytest.param("x = undefined", "cannot be imported (NameError", id="fails when it is imported"),
        pytest.param("x = 3", "is no class or function that makes a model", id="holds a number for a model"),
    ],
)
def test_a_model_of_ones_own_is_refused_whose_module(source, expected, here, monkeypatch, capsys):
    name = f"own{abs(hash(source))}"
    (here / f"{name}.py").write_text(source)
    (here / "c.toml").write_text(SMALL.replace('"sir"', f'"{name}:x"').format(data="synthetic = { seed = 1 }"))
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet")
    assert code == 2
    assert expected in err
    assert "Traceback" not in err


def test_a_directory_that_is_no_run_is_left_alone(here, monkeypatch, capsys):
    (here / "precious").mkdir()
    (here / "precious/file").write_text("x")
    (here / "c.toml").write_text(SMALL.format(data="synthetic = { seed = 1 }"))
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--out", "precious", "--overwrite")
    assert code == 2
    assert "no run directory" in err
    assert (here / "precious/file").read_text() == "x"
