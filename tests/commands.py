"""The command line in process, and configurations for it."""

import pytest

from calibrant.cli import main

SMALL = """
[model]
name = "sir"
options = {{ n_agents = 60 }}
steps = 8
[data]
{data}
[loss]
name = "log-mean-squared-error"
[parameters.initial]
value = 5.0
[method]
weight = 0.01
max_updates = 20
evaluate_every = 10
evaluation_simulations = 10
kl_samples = 50
posterior = "full-rank-gaussian"
"""

#: The smallest model, and one parameter, `p`.
WALK = (
    SMALL.replace('"sir"', '"random-walk"')
    .replace("n_agents = 60", "")
    .format(data="synthetic = { seed = 1 }")
    .replace("[parameters.initial]\nvalue = 5.0\n", "")
    .replace("log-mean-squared-error", "mean-squared-error")
)

JUNE = """
[model]
name = "june"
[model.options]
size = 300
start = 2020-03-01
days = 12
[[model.options.policies]]
start = 2020-03-05
venues = ["all"]
factor = "distance"
[data]
file = "d.csv"
date_column = "date"
columns = { infections = "cases" }
until = 2020-03-09
[loss]
name = "log-mean-squared-error"
[parameters.log_seed]
prior = { distribution = "Normal", loc = -1.5, scale = 0.2 }
[parameters.log_contact]
prior = { distribution = "Normal", loc = [-1.0], scale = [0.5] }
[method]
max_updates = 2
kl_samples = 20
estimator = "flow-score"
evaluate_every = 2
evaluation_simulations = 3
posterior = "full-rank-gaussian"
"""


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["calibrant", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    out = capsys.readouterr()
    return exit_.value.code or 0, out.out, out.err
