"""The search of a weight, with refits in closed form."""

import types

import numpy as np
import pytest

from calibrant import checks


class Conjugate(checks.Refitter):
    """A normal mean, its standard normal prior and one datum: at weight w the variance of the posterior is w / 2 by
    decree, and right at 1."""

    problem_names = ("mean",)

    def __init__(self, weight, sd=lambda weight: np.sqrt(weight / 2)):
        self.method = types.SimpleNamespace(weight=weight)
        self._sd = sd

    def refit(self, weight, *, progress=None, there_and_back=True):
        rng = np.random.default_rng(3)
        truth = rng.normal(size=(200, 1))
        y = truth + rng.normal(size=(200, 1))
        draws = y[:, None] / 2 + self._sd(weight) * rng.normal(size=(200, 199, 1))
        found = checks.calibration(draws, truth, rng.normal(size=(200, 1)), names=("mean",))
        return types.SimpleNamespace(calibration=lambda: found)


@pytest.mark.parametrize("start", [1 / 30, 1.0, 30.0])
def test_the_weight_at_which_intervals_of_a_normal_mean_cover_is_found_from_either_side(start):
    search = checks.choose_weight(Conjugate(start), nominal=0.8)
    assert search.steps[0].weight == start
    assert search.found.coverage == pytest.approx(0.8, abs=2.5 * search.found.error)
    assert 0.7 < search.weight < 1.4
    assert search.bracket[0] <= search.weight <= search.bracket[1]
    assert "By parameter: mean" in search.sentence()
    assert len(search.describe()["steps"]) == len(search.steps)
    assert not search.idle
    assert checks.weight_figure(search).axes


def test_widths_that_do_not_feel_the_weight_are_said():
    search = checks.choose_weight(Conjugate(1.0, sd=lambda weight: 0.3), nominal=0.9, steps=4)
    assert search.bracket is None
    assert search.idle
    assert "too few at every weight that was tried; widths hardly change" in search.sentence()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        pytest.param({"nominal": 1.0}, "0 < nominal < 1", id="of certainty"),
        pytest.param({"factor": 1.0}, "factor > 1", id="in steps that lead nowhere"),
        pytest.param({"steps": 0}, "steps >= 1", id="of no step"),
    ],
)
def test_a_search_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        checks.choose_weight(Conjugate(1.0), **arguments)


def test_a_search_from_weight_zero_is_refused():
    with pytest.raises(ValueError, match="a weight above 0"):
        checks.choose_weight(Conjugate(0.0))
