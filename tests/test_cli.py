"""The command line, in process: what it writes."""

import csv
import datetime as dt
import json

import jax.numpy as jnp
import numpy as np
import pytest
from commands import JUNE, SMALL, WALK, run
from registry import CONFIGURATION_STEPS

import calibrant as cal
from calibrant import worlds
from calibrant._config import bundled_configs, parse_config
from calibrant._config._models import MODELS
from calibrant.cli import main


def calibrated(folder, text, *arguments):
    """The directory, with a configuration `c.toml` of this text and its run."""
    (folder / "c.toml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["calibrant", "calibrate", "c.toml", "--quiet", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
    assert not exit_.value.code
    return folder


def test_a_calibration_writes_a_run_that_is_overwritten_reported_and_simulated(here, monkeypatch, capsys):
    (here / "c.toml").write_text(WALK)
    code, out, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet")
    assert (code, err) == (0, "")
    assert "report: runs/c/report.html" in out
    names = {p.name for p in (here / "runs/c").iterdir()}
    assert names == {"posterior.nc", "flow.h5", "manifest.json", "metrics.jsonl", "config.toml", "report.html"}
    page = (here / "runs/c/report.html").read_text()
    assert ">p<" in page
    assert page.count("data:image/png;base64") == 3
    assert "http://" not in page
    assert "https://" not in page
    manifest = json.loads((here / "runs/c/manifest.json").read_text())
    assert manifest["config"]["method"]["max_updates"] == 20
    assert set(manifest["posterior"]) == {"p"}

    code, _, _ = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet", "--overwrite")
    assert code == 0
    again = json.loads((here / "runs/c/manifest.json").read_text())
    assert again["posterior"] == manifest["posterior"]
    assert sorted(p.name for p in (here / "runs").iterdir()) == ["c"]

    (here / "runs/c/report.html").unlink()
    code, _, _ = run(monkeypatch, capsys, "report", "runs/c")
    assert code == 0
    again = (here / "runs/c/report.html").read_text()
    assert again.split("<img")[0] == page.split("<img")[0]
    assert again.count("data:image/png;base64") == 3  # the second run differs in its time alone

    code, out, _ = run(monkeypatch, capsys, "simulate", "runs/c")
    rows = list(csv.DictReader(out.splitlines()))
    assert len(rows) == 8
    assert set(rows[0]) == {"time", "value[0]"}


def test_a_run_directory_that_exists_is_refused_and_left_as_it_is(here, monkeypatch, capsys):
    (here / "runs/c").mkdir(parents=True)
    (here / "runs/c/manifest.json").write_text("{}")
    (here / "c.toml").write_text(SMALL.format(data="synthetic = { seed = 1 }"))
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet")
    assert code == 2
    assert "--overwrite" in err
    assert [p.name for p in (here / "runs/c").iterdir()] == ["manifest.json"]


def test_a_planned_calibration_tells_its_plan_and_its_gradients(here, monkeypatch, capsys):
    monkeypatch.setattr("calibrant.inference._planner._TIMED_FOR", 1e-9)
    text = WALK + 'mode = "auto"\nmemory = 2\n'
    (here / "c.toml").write_text(text)
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml")
    assert code == 0
    assert "Plan" in err
    assert "(chosen)" in err
    assert "Gradients at the start" in err
    manifest = json.loads((here / "runs/c/manifest.json").read_text())
    assert manifest["plan"]["chosen"] in {o["mode"] for o in manifest["plan"]["options"]}
    assert set(manifest["gradient_check"]) == {"p"}
    page = (here / "runs/c/report.html").read_text()
    for heading in ("<h2>Plan</h2>", "<h2>Gradients at the start</h2>"):
        assert heading in page
    (here / "runs/c/report.html").unlink()
    code, _, _ = run(monkeypatch, capsys, "report", "runs/c")
    assert code == 0
    again = (here / "runs/c/report.html").read_text()
    assert (
        again.split("<h2>Gradients")[1].split("<h2>Settings")[0]
        == page.split("<h2>Gradients")[1].split("<h2>Settings")[0]
    )


def test_gradients_are_looked_at_before_a_calibration_and_after(here, monkeypatch, capsys):
    (here / "c.toml").write_text(WALK)
    code, out, err = run(monkeypatch, capsys, "gradients", "c.toml", "--points", "2", "--repeats", "4")
    assert (code, err) == (0, "")
    assert "straight-through, H = 0" in " ".join(out.split())
    assert out.count("\n- ") >= 1  # advice
    assert (here / "c-gradients.png").read_bytes()[:4] == b"\x89PNG"
    assert "S/N" in out
    numbers = json.loads((here / "c-gradients.json").read_text())
    assert {"variance", "signal_to_noise", "bias", "mean"} <= set(numbers["candidates"][0]["by_parameter"][0])
    run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet", "--updates", "2")
    code, out, err = run(
        monkeypatch, capsys, "gradients", "runs/c", "--points", "2", "--repeats", "4", "--out", "after.png"
    )
    assert (code, err) == (0, "")
    assert (here / "after.png").is_file()


def test_a_model_of_ones_own_is_calibrated_to_a_file(here, monkeypatch, capsys):
    (here / "my_model.py").write_text(
        "import jax.numpy as jnp, calibrant as cal, numpyro.distributions as dist\n"
        "class P(cal.Params):\n    rate: object = cal.parameter(0.5, prior=dist.Uniform(0.0, 1.0))\n"
        "class Mine(cal.AbstractModel):\n    Params = P\n"
        "    def init(self, params, rng):\n        return jnp.ones(())\n"
        "    def step(self, params, state, inputs_t, rng):\n        return state * params.rate\n"
        "    def observe(self, params, state, inputs_t, rng):\n        return state\n"
    )
    (here / "d.csv").write_text("day,level\n1,0.5\n2,\n3,0.125\n")
    (here / "c.toml").write_text(
        '[model]\nname = "my_model:Mine"\nsteps = 3\n[data]\nfile = "d.csv"\ncolumn = "level"\n'
        '[loss]\nname = "mean-squared-error"\n[method]\nmax_updates = 20\nevaluate_every = 10\nweight = 0.001\n'
    )
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--quiet", "--out", "elsewhere")
    assert (code, err) == (0, "")
    assert (here / "elsewhere/report.html").is_file()


def test_a_new_configuration_builds(here, monkeypatch, capsys):
    code, _, _ = run(monkeypatch, capsys, "init", "mine.toml")
    assert code == 0
    parse_config((here / "mine.toml").read_text(), "mine.toml").build(here)


def test_a_new_configuration_in_the_place_of_a_file_is_refused(here, monkeypatch, capsys):
    (here / "mine.toml").write_text("")
    assert run(monkeypatch, capsys, "init", "mine.toml")[0] == 2
    assert (here / "mine.toml").read_text() == ""


def test_bundled_models_and_configurations_are_listed(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "models")
    assert code == 0
    assert all(name in out for name in (*MODELS, *bundled_configs()))


def test_a_bundled_model_is_simulated_at_given_values(here, monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, "simulate", "random-walk", "--steps", "5", "--set", "p=1.0", "--seed", "3")
    assert [row["value[0]"] for row in csv.DictReader(out.splitlines())] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("name", bundled_configs())
def test_a_bundled_configuration_builds(name, here):
    rows = "".join(f"{dt.date(2020, 3, 1) + dt.timedelta(days=i)},{i},{2 * i}\n" for i in range(200))
    (here / "london_daily_2020.csv").write_text("date,deaths_28day_positive_test,hospital_admissions\n" + rows)
    (here / "blood_donor_serology.csv").write_text(
        "date,region,assay,n_positive,total_samples\n2020-04-09,london,euro_immun,3,50\n2020-04-09,north,euro_immun,3,50\n"
    )
    config = parse_config(bundled_configs()[name], name)
    if "scale" in config.model.options:
        config.model.options["scale"] = 0.0005
    problem, prior, method = config.build(here)
    assert isinstance(method, cal.GVI)
    assert prior.dim >= 4
    assert problem.steps == CONFIGURATION_STEPS[name]
    assert (config.forecast(problem, here) is not None) == (config.data.until is not None)


def test_a_prior_may_be_a_distribution_that_numpyro_makes_by_a_function(here):
    text = SMALL.format(data="synthetic = { seed = 1 }") + (
        '\n[parameters.beta]\nprior = { distribution = "TruncatedNormal", loc = 0.5, scale = 0.2, low = 0.0 }\n'
    )
    _, prior, _ = parse_config(text, "c.toml").build(here)
    assert "beta" in prior.names


def test_a_world_is_built_and_described_on_the_command_line(here, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "world", "build", "town.h5", "--size", "1e3", "--seed", "2")
    assert code == 0
    assert "1,000 people" in out
    code, out, _ = run(monkeypatch, capsys, "world", "info", "town.h5", "--picture", "town.png")
    assert code == 0
    assert "mean household" in out
    assert (here / "town.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in here.iterdir()) == ["town.h5", "town.png"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(("build", "town.h5"), "exists", id="built in the place of another"),
        pytest.param(("build", "small.h5", "--size", "10"), "at least 100", id="built of ten people"),
        pytest.param(("info", "none.h5"), "no file", id="described without a file"),
        pytest.param(("import", "town.h5", "other.h5"), "no world file of JUNE", id="imported from one of our own"),
        pytest.param(("build", "x.h5", "--atlas", "a.csv"), "together", id="built of areas without places"),
    ],
)
def test_a_world_is_refused_that_is_to_be(arguments, expected, here, monkeypatch, capsys):
    worlds.build_world(200).save(here / "town.h5")
    code, _, err = run(monkeypatch, capsys, "world", *arguments)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert [p.name for p in here.iterdir()] == ["town.h5"]


CASES = "date,cases\n" + "".join(f"2020-03-{day:02d},{day}\n" for day in range(1, 13))


@pytest.fixture(scope="module")
def june(tmp_path_factory):
    folder = tmp_path_factory.mktemp("june")
    (folder / "d.csv").write_text(CASES)
    return calibrated(folder, JUNE, "--size", "400")


def test_june_is_fitted_forecast_and_asked_what_if(june, monkeypatch, capsys):
    monkeypatch.chdir(june)
    assert "Does it forecast?" in (june / "runs/c/report.html").read_text()
    (june / "none.toml").write_text('[[policies]]\nstart = 2020-03-10\nvenues = ["all"]\nfactor = "distance"\n')
    code, _, err = run(monkeypatch, capsys, "simulate", "runs/c", "--policy", "none.toml", "--draws", "8")
    assert code == 0, err
    table = list(csv.DictReader((june / "runs/c/policy.csv").read_text().splitlines()))
    infections = [row for row in table if row["stream"] == "cumulative_infections"]
    assert [row["date"] for row in infections][:2] == ["2020-03-01", "2020-03-02"]
    before = infections[3]  # the calendars and the random numbers are the same until March 5
    assert before["as it was 50%"] == before["otherwise 50%"]
    assert before["difference 95%"] == "0"
    assert (june / "runs/c/policy.png").is_file()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            '[[policies]]\nstart = 2020-03-10\nvenues = ["all"]\nfactor = "other"\n',
            "'other'",
            id="by a factor that was not fitted",
        ),
        pytest.param("x = 1\n", "holds [[policies]]", id="without policies"),
        pytest.param("[[", "cannot be read", id="that are no TOML"),
    ],
)
def test_other_policies_are_refused(text, expected, june, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.toml").write_text(text)
    monkeypatch.chdir(june)
    code, _, err = run(monkeypatch, capsys, "simulate", "runs/c", "--policy", str(tmp_path / "bad.toml"))
    assert code == 2
    assert expected in err


SHARES = """
[data.shares.seroprevalence]
file = "blood.csv"
positive = "positive"
tested = "tested"
select = { region = "here" }
[loss.weights]
seroprevalence = 0
[loss.streams.infections]
name = "poisson"
[loss.streams.seroprevalence]
name = "binomial"
sensitivity = 0.9
"""


WITH_SHARES = (
    JUNE.replace('factor = "distance"', 'factor = "distance"\nevery = 3')
    .replace('"Normal", loc = [-1.0], scale = [0.5]', '"GaussianRandomWalk", scale = 0.3, num_steps = 3')
    .replace('[loss]\nname = "log-mean-squared-error"\n', SHARES)
)


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shares")
    (folder / "d.csv").write_text(CASES)
    (folder / "blood.csv").write_text("date,region,positive,tested\n2020-03-07,here,3,20\n2020-03-07,there,9,20\n")
    return folder


@pytest.fixture(scope="module")
def fitted_to_shares(shares):
    return calibrated(shares, WITH_SHARES)


def test_shares_of_those_tested_and_a_random_walk_of_contacts_are_configured(shares):
    problem, prior, _ = parse_config(WITH_SHARES, "c").build(shares)
    assert prior.distributions["log_contact"].shape() == (3,)
    assert np.nanmax(problem.data["seroprevalence"]) == 0.15


def test_a_stream_of_weight_0_is_read_and_not_fitted(shares):
    problem, _, _ = parse_config(WITH_SHARES, "c").build(shares)
    simulated = {"infections": jnp.ones((1, 9)), "seroprevalence": jnp.full((1, 9), 0.1)}
    other = {**simulated, "seroprevalence": jnp.full((1, 9), 0.9)}
    assert problem.evaluate(simulated, {}) == problem.evaluate(other, {})
    fitted = WITH_SHARES.replace("seroprevalence = 0", "seroprevalence = 1")
    problem, _, _ = parse_config(fitted, "c").build(shares)
    assert problem.evaluate(simulated, {}) < problem.evaluate(other, {})


@pytest.mark.slow
def test_a_run_may_begin_where_another_of_another_size_ended(fitted_to_shares, monkeypatch, capsys):
    monkeypatch.chdir(fitted_to_shares)
    code, _, err = run(monkeypatch, capsys, "calibrate", "c.toml", "--start", "runs/c", "--out", "on", "--size", "500")
    assert code == 0, err


@pytest.mark.slow
def test_a_start_with_other_priors_is_refused(fitted_to_shares, monkeypatch, capsys):
    monkeypatch.chdir(fitted_to_shares)
    (fitted_to_shares / "other.toml").write_text(WITH_SHARES.replace("loc = -1.5", "loc = -1.4"))
    code, _, err = run(monkeypatch, capsys, "calibrate", "other.toml", "--start", "runs/c", "--quiet")
    assert code == 2
    assert "--start runs/c: The start has other priors" in err


def test_a_result_survives_an_interrupted_report(here, monkeypatch, capsys):
    import calibrant.cli._run as module

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    (here / "c.toml").write_text(SMALL.format(data="synthetic = { seed = 1 }"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_report", interrupted)
        code, _, _ = run(patch, capsys, "calibrate", "c.toml", "--quiet")
    assert code != 0
    assert {"posterior.nc", "flow.h5", "manifest.json", "config.toml"} <= {p.name for p in (here / "runs/c").iterdir()}
    code, _, err = run(monkeypatch, capsys, "report", "runs/c")
    assert code == 0, err
    assert (here / "runs/c/report.html").is_file()


def test_simulated_csv_holds_what_the_library_simulates(here, monkeypatch, capsys):
    model = cal.models.SIR.small_world()
    expected = cal.simulate(model, model.Params(), seed=4, steps=6).outputs["infected"]
    _, out, _ = run(monkeypatch, capsys, "simulate", "sir", "--steps", "6", "--seed", "4")
    got = [float(row["infected"]) for row in csv.DictReader(out.splitlines())]
    np.testing.assert_array_equal(got, expected)
