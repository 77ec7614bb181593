"""A Mesa model, calibrated from its losses alone: a rumour on a grid.

pip install mesa        # 3.3
python examples/mesa_rumour.py [--updates 100]
"""

import argparse
import time

import mesa
import numpy as np
import numpyro.distributions as dist
from mesa.discrete_space import FixedAgent, OrthogonalMooreGrid

import calibrant as cal

SIDE, DAYS = 12, 25
TRUTH = {"talk": 0.15, "forget": 0.1}


class Person(FixedAgent):
    def __init__(self, model, cell):
        super().__init__(model)
        self.cell, self.state = cell, "ignorant"

    def step(self):
        if self.state != "spreads":
            return
        for other in self.cell.neighborhood.agents:
            if other.state == "ignorant" and self.random.random() < self.model.params["talk"]:
                other.state = "spreads"
        if self.random.random() < self.model.params["forget"]:
            self.state = "silent"


class Town(mesa.Model):
    def __init__(self, params, seed):
        super().__init__(seed=seed)
        self.params = params
        grid = OrthogonalMooreGrid((SIDE, SIDE), torus=True, random=self.random)
        for cell in grid.all_cells:
            Person(self, cell)
        for person in self.random.sample(list(self.agents), 3):
            person.state = "spreads"

    def count(self, state):
        return sum(person.state == state for person in self.agents)


def rumour(params, seed):
    """Who knows the rumour tells each neighbour with probability `talk` a day, and falls silent with `forget`."""
    town = Town(params, seed)
    out = {"spreads": [], "silent": []}
    for _ in range(DAYS):
        town.agents.shuffle_do("step")
        for state, series in out.items():
            series.append(town.count(state))
    return out


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--updates", type=int, default=100)
    updates = parser.parse_args(arguments).updates
    model = cal.BlackBox(
        rumour,
        parameters={
            "talk": cal.parameter(0.2, prior=dist.Beta(2.0, 8.0), units="1/day"),
            "forget": cal.parameter(0.2, prior=dist.Beta(2.0, 8.0), units="1/day"),
        },
        outputs={"spreads": (DAYS,), "silent": (DAYS,)},
        timeout=60.0,
    )
    data = {k: np.asarray(x) for k, x in cal.simulate(model, model.Params(**TRUTH), seed=1).outputs.items()}
    streams = cal.losses.Streams(dict.fromkeys(data, cal.losses.GaussianLogLikelihood(8.0)))
    problem = cal.Problem(model, data, cal.losses.MarginalLikelihood(streams))
    method = cal.GVI(
        estimator=cal.FlowScore(),
        simulations=10,
        replicates=3,
        max_updates=updates,
        learning_rate=4e-2,
        final_learning_rate=4e-3,
        evaluate_every=50,
        evaluation_simulations=30,
        family=cal.posteriors.FullRankGaussian(),
    )
    start = time.perf_counter()
    calibration = cal.calibrate(problem, method=method, seed=0)
    seconds = time.perf_counter() - start
    for name, (low, median, high) in calibration.quantiles().items():
        print(f"{name}: {median:.3f} ({low:.3f} to {high:.3f}), true {TRUTH[name]}")
    print(f"{model.n_runs} runs of Mesa, {model.n_failed} failed, in {seconds:.0f} s")


if __name__ == "__main__":
    main()
