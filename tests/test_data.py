"""Observations: dates, gaps, periods, and mistakes told in one sentence."""

import datetime as dt

import jax.numpy as jnp
import numpy as np
import pytest

from calibrant import losses
from calibrant.data import DataError, read_series, read_shares
from calibrant.models.june import june_from_options

DATES = [dt.date(2020, 3, 1) + dt.timedelta(days=i) for i in range(5)]


def _file(tmp_path, text):
    path = tmp_path / "series.csv"
    path.write_text(text)
    return path


def test_series_are_matched_by_date(tmp_path):
    path = _file(tmp_path, "date,deaths,beds\n2020-03-03,4,\n2020-02-28,9,1\n2020-03-02,3,7\n2020-03-09,1,1\n")
    out = read_series(path, {"deaths": "deaths", "occupied": "beds"}, DATES)
    np.testing.assert_array_equal(out["deaths"], [np.nan, 3, 4, np.nan, np.nan])
    np.testing.assert_array_equal(out["occupied"], [np.nan, 7, np.nan, np.nan, np.nan])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        pytest.param("date,x\n2020-03-01,1\n", "no column 'deaths'; it has date, x", id="no such column"),
        pytest.param("date,deaths\n01/03/2020,1\n", "line 2: '01/03/2020' is no date", id="a date of another format"),
        pytest.param(
            "date,deaths\n2020-03-01,1\n2020-03-01,1\n", "line 3: 2020-03-01 is there twice", id="a date twice"
        ),
        pytest.param("date,deaths\n2020-03-01,-1\n", "negative count -1", id="a negative count"),
        pytest.param("date,deaths\n2020-03-01,many\n", "'many' in column 'deaths' is no number", id="a word"),
        pytest.param("date,deaths\n2020-03-01,inf\n", "not finite", id="an infinite count"),
        pytest.param(
            "date,deaths\n2019-01-01,3\n2019-01-02,3\n",
            "no value from 2020-03-01 to 2020-03-05; .* 2019-01-01 to 2019",
            id="dates of another year",
        ),
        pytest.param("date,deaths\n2020-03-01,\n", "no value from", id="blanks alone"),
        pytest.param("", "no column 'date'", id="an empty file"),
    ],
)
def test_a_file_of_data_that_cannot_be_matched_is_refused(tmp_path, text, match):
    with pytest.raises(DataError, match=match):
        read_series(_file(tmp_path, text), {"deaths": "deaths"}, DATES)


SEROLOGY = """date,region,positive,tested
2020-03-01,london,1,10
2020-03-01,north,9,10
2020-03-02,london,2,30
2020-03-04,london,0,20
"""


def test_shares_of_those_tested_are_read_with_their_numbers(tmp_path):
    path = _file(tmp_path, SEROLOGY)
    share, tested = read_shares(path, "positive", "tested", DATES, select={"region": "london"})
    np.testing.assert_array_equal(tested, [10, 30, 0, 20, 0])
    np.testing.assert_allclose(share, [0.1, 2 / 30, np.nan, 0, np.nan])
    share, tested = read_shares(path, "positive", "tested", DATES, select={"region": "london"}, pool=2)
    np.testing.assert_array_equal(tested, [0, 40, 0, 20, 0])  # on the later of two days
    np.testing.assert_allclose(share, [np.nan, 3 / 40, np.nan, 0, np.nan])
    deaths = read_series(path, {"n": "positive"}, DATES, select={"region": "north"})["n"]
    np.testing.assert_array_equal(deaths, [9, np.nan, np.nan, np.nan, np.nan])


@pytest.mark.parametrize(
    ("columns", "select", "match"),
    [
        pytest.param(("positive", "tested"), {}, "there twice; `select` says which", id="of two regions"),
        pytest.param(
            ("positive", "tested"), {"region": "west"}, "no row with region = west", id="of a region without rows"
        ),
        pytest.param(("positive", "tested"), {"country": "uk"}, "no column 'country'", id="selected by no column"),
        pytest.param(
            ("tested", "positive"),
            {"region": "london"},
            "more 'tested' than 'positive' on 2020-03-01",
            id="with more positive than tested",
        ),
    ],
)
def test_shares_of_those_tested_that_cannot_be_are_refused(tmp_path, columns, select, match):
    with pytest.raises(DataError, match=match):
        read_shares(_file(tmp_path, SEROLOGY), *columns, DATES, select=select)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_series(tmp_path / "none.csv", {"deaths": "deaths"}, DATES)


OF_DAYS = jnp.arange(32.0).reshape(2, 16)
DAYS = jnp.ones(16).at[3].set(jnp.nan)  # spoils the first week; two more days are no week


def test_a_loss_of_weeks_compares_sums_of_seven_days():
    loss = losses.Periods(losses.MeanSquaredError(), 7)
    weeks = np.asarray(OF_DAYS[:, :14]).reshape(2, 2, 7).sum(2)
    np.testing.assert_allclose(loss(OF_DAYS, DAYS, {}), np.mean((weeks[:, 1] - 7) ** 2))
    assert losses.Periods(losses.PoissonLogLikelihood(), 2).per_simulation
    named = losses.Periods(losses.NegativeBinomialLogLikelihood("k"), 2)
    assert named.parameters == ("k",)


def test_a_loss_of_periods_longer_than_the_data_is_refused():
    with pytest.raises(ValueError, match="at least so many"):
        losses.Periods(losses.MeanSquaredError(), 20)(OF_DAYS, DAYS, {})


def test_a_loss_of_periods_without_a_day_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        losses.Periods(losses.MeanSquaredError(), 0)


def test_observation_noise_of_weeks_is_that_of_their_sums():
    import jax

    loss = losses.Periods(losses.NegativeBinomialLogLikelihood(5.0), 7)
    x = jnp.linspace(10, 50, 16)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(lambda key: loss.observe(key, x, {}))(keys))
    assert drawn.shape == (4000, 16)
    weeks = np.asarray(x[:14]).reshape(2, 7).sum(1)
    sums = drawn[:, :14].reshape(-1, 2, 7).sum(2)
    np.testing.assert_allclose(sums.mean(0), weeks, rtol=0.04)
    np.testing.assert_allclose(sums.var(0), weeks + weeks**2 / 5, rtol=0.15)
    np.testing.assert_array_equal(drawn[:, 14:], np.broadcast_to(np.asarray(x[14:]), (4000, 2)))


def test_june_is_built_from_the_options_of_a_configuration(tmp_path):
    policies = [
        {"start": "2020-03-05", "venues": ["all"], "factor": "distance", "every": 7},
        {"start": dt.date(2020, 3, 3), "end": dt.date(2020, 3, 4), "venues": ["pub"], "factor": 0},
    ]
    model = june_from_options(size=300, start="2020-03-01", days=20, policies=policies)
    assert model.free_factors == ("distance 0", "distance 1", "distance 2")
    assert model.default_params.log_contact.shape == (3,)
    assert model.dates[0] == dt.date(2020, 3, 1)
    assert len(model.dates) == 20
    assert float(june_from_options(scale=0.0001, days=2).people_per_agent) == pytest.approx(10_000)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"size": 300, "scale": 0.1}, "only one of", id="a size and a scale"),
        pytest.param({"scale": 2.0}, "from 0 to 1", id="twice London"),
        pytest.param({"size": 300, "atlas": "x.csv"}, "needed together", id="areas without places"),
        pytest.param({"size": 300, "start": "March"}, "start is a date", id="a start that is no date"),
        pytest.param(
            {"size": 300, "policies": [{"venues": ["pub"]}]},
            "the start of a policy is a date",
            id="a policy without a start",
        ),
        pytest.param(
            {"size": 300, "policies": [{"start": "2020-03-05", "where": "pub"}]},
            "not 'where'",
            id="a policy with an unknown field",
        ),
        pytest.param(
            {"size": 300, "policies": [{"start": "2020-03-05", "venues": ["pub"], "every": 7}]},
            "free factor",
            id="a fixed factor by periods",
        ),
        pytest.param({"world": "none.h5"}, "no file", id="no such world"),
        pytest.param(
            {"size": 300, "factors": ["a"], "policies": [{"start": "2020-03-05", "venues": ["pub"], "factor": "b"}]},
            "'b', which is not among",
            id="a factor that is not among those named",
        ),
    ],
)
def test_options_of_june_that_cannot_be_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        june_from_options(**options)
