"""How mistakes on the command line end: in one sentence, exit code 2, and nothing left behind."""

import pytest
from commands import JUNE, SMALL, run

pytestmark = pytest.mark.usefixtures("unoptimised")

BAD = {
    "not toml": ("[model", "no valid TOML"),
    "unknown field": (SMALL.format(data="synthetic = { seed = 1 }") + "\n[mehtod]\nx = 1\n", "mehtod"),
    "unknown model": (SMALL.replace('"sir"', '"sirr"').format(data="synthetic = { seed = 1 }"), "no model 'sirr'"),
    "unknown option": (SMALL.replace("n_agents", "agentz").format(data="synthetic = { seed = 1 }"), "agentz"),
    "missing module": (SMALL.replace('"sir"', '"nowhere:X"').format(data="synthetic = { seed = 1 }"), "nowhere"),
    "no data": (SMALL.format(data=""), "exactly one"),
    "no file": (SMALL.format(data='file = "none.csv"\ncolumns = { infected = "a" }'), "none.csv"),
    "no column": (SMALL.format(data='file = "d.csv"\ncolumns = { infected = "a" }'), "no column 'a'"),
    "no number": (SMALL.format(data='file = "d.csv"\ncolumns = { infected = "text" }'), "line 2"),
    "wrong length": (SMALL.format(data='file = "d.csv"\ncolumns = { infected = "x" }'), "equal shape"),
    "unknown stream": (SMALL.format(data='file = "d.csv"\ncolumns = { infekted = "x" }'), "infekted"),
    "unknown loss": (SMALL.replace("log-mean", "lag-mean").format(data="synthetic = { seed = 1 }"), "lag-mean"),
    "negative weight": (SMALL.replace("0.01", "-1").format(data="synthetic = { seed = 1 }"), "weight"),
    "unknown parameter": (
        SMALL.format(data="synthetic = { seed = 1 }") + "\n[parameters.betta]\nvalue = 1.0\n",
        "betta",
    ),
    "unknown distribution": (
        SMALL.format(data="synthetic = { seed = 1 }") + '\n[parameters.beta]\nprior = { distribution = "Unifrom" }\n',
        "Unifrom",
    ),
    "bad distribution": (
        SMALL.format(data="synthetic = { seed = 1 }")
        + '\n[parameters.beta]\nprior = { distribution = "Uniform", low = 2, high = 1 }\n',
        "Uniform cannot be made",
    ),
    "half a schedule": (
        SMALL.format(data="synthetic = { seed = 1 }") + "estimator = 'gumbel-softmax'\ntemperature = { from = 1.0 }\n",
        "temperature",
    ),
    "temperature for nothing": (
        SMALL.format(data="synthetic = { seed = 1 }") + "temperature = 0.5\n",
        "temperature",
    ),
    "memory for nothing": (SMALL.format(data="synthetic = { seed = 1 }") + "memory = 2\n", "the mode auto"),
    "a plan and a number": (
        SMALL.format(data="synthetic = { seed = 1 }") + 'mode = "auto"\nsimulations_at_once = 2\n',
        "chooses simulations_at_once",
    ),
    "no memory": (
        SMALL.format(data="synthetic = { seed = 1 }") + 'mode = "auto"\nmemory = 1e-7\n',
        "allow more `memory`",
    ),
    "step for nothing": (SMALL.format(data="synthetic = { seed = 1 }") + "step = 0.5\n", "finite-differences"),
    "horizon for nothing": (
        SMALL.format(data="synthetic = { seed = 1 }") + 'estimator = "flow-score"\nhorizon = { sliding = 1 }\n',
        "no effect",
    ),
    "infinite weight": (SMALL.replace("0.01", "inf").format(data="synthetic = { seed = 1 }"), "weight"),
    "negative counts": (SMALL.format(data='file = "d.csv"\ncolumns = { infected = "minus" }'), "at least 0"),
    "vector value": (
        SMALL.format(data="synthetic = { seed = 1 }") + "\n[parameters.beta]\nvalue = [1.0, 2.0]\n",
        "shape",
    ),
    "weights": (SMALL.format(data="synthetic = { seed = 1 }") + "\n[loss.weights]\ninfected = -1\n", "loss.weights"),
    "two kinds of loss": (
        SMALL.format(data="synthetic = { seed = 1 }") + '\n[loss.streams.infected]\nname = "poisson"\n',
        "either a name or streams",
    ),
    "abstract distribution": (
        SMALL.format(data="synthetic = { seed = 1 }")
        + '\n[parameters.beta]\nprior = { distribution = "Distribution" }\n',
        "Distribution cannot be made",
    ),
    "no width": (
        SMALL.format(data="synthetic = { seed = 1 }")
        + '\n[parameters.beta]\nprior = { distribution = "Delta", v = 1 }\n',
        "Delta has no width",
    ),
    "table for a number": (
        SMALL.format(data="synthetic = { seed = 1 }")
        + '\n[parameters.beta]\nprior = { distribution = "Normal", loc = { a = 1 } }\n',
        "Normal cannot be made",
    ),
    "infinite horizon": (SMALL.format(data="synthetic = { seed = 1 }") + "horizon = { sliding = inf }\n", "sliding"),
    "dates without a calendar": (
        SMALL.format(data='file = "d.csv"\ncolumns = { infected = "x" }\ndate_column = "x"'),
        "no calendar",
    ),
    "streams of a file": (
        SMALL.format(data='file = "d.csv"\ncolumns = { infected = "x" }\nstreams = ["infected"]'),
        "streams belongs to",
    ),
    "weights of one output": (
        SMALL.replace('"sir"', '"random-walk"')
        .replace("n_agents = 60", "")
        .format(data="synthetic = { seed = 1 }")
        .replace("[parameters.initial]\nvalue = 5.0\n", "")
        + "\n[loss.weights]\nx = 1\n",
        "no named streams",
    ),
    "steps and until": (
        JUNE.replace('name = "june"', 'name = "june"\nsteps = 5'),
        "give one",
    ),
    "a share that is a column too": (
        JUNE.replace("[loss]", '[data.shares.infections]\nfile = "d.csv"\npositive = "x"\ntested = "text"\n[loss]'),
        "both in columns and in shares",
    ),
    "select without dates": (SMALL.format(data='file = "d.csv"\ncolumn = "x"\nselect = { a = "b" }'), "select needs"),
    "binomial of counts": (JUNE.replace("log-mean-squared-error", "binomial"), "give them in data.shares"),
    "binomial of periods": (
        JUNE.replace('name = "log-mean-squared-error"', 'name = "binomial"\nevery = 7'),
        "shares cannot be added up",
    ),
    "horizon": (SMALL.format(data="synthetic = { seed = 1 }") + "horizon = { sliding = 1.5 }\n", "whole number"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_end_in_one_sentence(name, here, monkeypatch, capsys):
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
        ("calibrate", "nothing.toml"),
        ("report", "nowhere"),
        ("simulate", "sirr"),
        ("simulate", "sir", "--set", "beta"),
        ("simulate", "sir", "--set", "beta=x"),
        ("simulate", "sir", "--set", "betta=1"),
        ("simulate", "sir", "--set", "beta=nan"),
        ("simulate", "sir", "--out", "."),
        ("calibrate", "june-london"),
        ("calibrate", "june-town", "--size", "100", "--scale", "0.1"),
        ("gradients", "nothing.toml"),
        ("gradients", "june-london"),
        ("gradients", "boarding-school", "--out", "."),
        ("gradients", "boarding-school", "--out", "health.json"),
        ("world", "build", "w.h5", "--size", "1e12"),
        ("world", "build", "w.h5", "--size", "nan"),
    ],
)
def test_other_mistakes(arguments, here, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "Traceback" not in err
    assert err.strip()


@pytest.mark.parametrize("name", ["n" * 250, "file/run"])
def test_a_place_that_cannot_be_written_is_refused_first(name, here, monkeypatch, capsys):
    (here / "file").write_text("")
    (here / "c.toml").write_text(SMALL.format(data="synthetic = { seed = 1 }"))
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet", "--out", name)
    assert code == 2
    assert "choose another --out" in err
    assert sorted(p.name for p in here.iterdir()) == ["c.toml", "file"]


@pytest.mark.parametrize("text", ["[]", '{"schema": 1}', "{"])
def test_damaged_manifests_are_refused(text, here, monkeypatch, capsys):
    (here / "run").mkdir()
    for name, content in (("manifest.json", text), ("config.toml", ""), ("metrics.jsonl", "")):
        (here / "run" / name).write_text(content)
    code, _, err = run(monkeypatch, capsys, "report", "run")
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("source", ["def f(:", "x = undefined", "x = 3"])
def test_modules_that_do_not_work_are_told_of(source, here, monkeypatch, capsys):
    name = f"own{abs(hash(source))}"
    (here / f"{name}.py").write_text(source)
    (here / "c.toml").write_text(SMALL.replace('"sir"', f'"{name}:x"').format(data="synthetic = {{ seed = 1 }}"))
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet")
    assert code == 2
    assert "Traceback" not in err


def test_a_directory_that_is_no_run_is_left_alone(here, monkeypatch, capsys):
    (here / "precious").mkdir()
    (here / "precious/file").write_text("x")
    (here / "c.toml").write_text(SMALL.format(data="synthetic = { seed = 1 }"))
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--out", "precious", "--overwrite")
    assert code == 2
    assert "no run directory" in err
    assert (here / "precious/file").read_text() == "x"
