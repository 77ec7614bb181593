"""An epidemic written in PyTorch, calibrated by its own gradients.

    python examples/torch_sir.py [--updates 200]

Needs PyTorch: pip install 'calibrant[torch]'.
"""

import argparse
import time
from typing import Any

import numpy as np
import numpyro.distributions as dist
import torch

import calibrant as cal

PEOPLE, DAYS = 500, 40
TRUTH = {"beta": 0.4, "gamma": 0.1}


def happens(probability: torch.Tensor) -> torch.Tensor:
    """Of each person, 1 or 0, with the derivative of the probability: straight-through."""
    hard = torch.bernoulli(probability.detach())
    return hard + probability - probability.detach()


def epidemic(params: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """People who mix evenly; `seed` is that of PyTorch's generator already."""
    del seed
    susceptible = torch.ones(PEOPLE, dtype=params["beta"].dtype)
    susceptible[:10] = 0
    infected = 1 - susceptible
    counts: dict[str, list[torch.Tensor]] = {"infected": [], "recovered": []}
    for _ in range(DAYS):
        caught = susceptible * happens((1 - torch.exp(-params["beta"] * infected.mean())).expand(PEOPLE))
        recovers = infected * happens((1 - torch.exp(-params["gamma"])).expand(PEOPLE))
        susceptible, infected = susceptible - caught, infected + caught - recovers
        counts["infected"].append(infected.sum())
        counts["recovered"].append(PEOPLE - susceptible.sum() - infected.sum())
    return {name: torch.stack(x) for name, x in counts.items()}


model = cal.TorchModel(
    epidemic,
    parameters={
        "beta": cal.parameter(0.5, prior=dist.LogNormal(-0.7, 0.7), units="1/day", description="transmission rate"),
        "gamma": cal.parameter(0.2, prior=dist.LogNormal(-1.6, 0.5), units="1/day", description="recovery rate"),
    },
    outputs={"infected": (DAYS,), "recovered": (DAYS,)},
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--updates", type=int, default=200)
    updates = parser.parse_args(arguments).updates

    data = {k: np.asarray(x) for k, x in cal.simulate(model, model.Params(**TRUTH), seed=1).outputs.items()}
    streams: dict[str, Any] = dict.fromkeys(data, cal.losses.GaussianLogLikelihood(25.0))
    problem = cal.Problem(model, data, cal.losses.MarginalLikelihood(cal.losses.Streams(streams)))
    method = cal.GVI(
        simulations=5,
        replicates=5,
        max_updates=updates,
        learning_rate=2e-2,
        final_learning_rate=2e-3,
        family=cal.posteriors.FullRankGaussian(),
    )
    start = time.perf_counter()
    calibration = cal.calibrate(problem, method=method, seed=0)
    seconds = time.perf_counter() - start
    for name, (low, median, high) in calibration.quantiles().items():
        print(f"{name}: {median:.3f} ({low:.3f} to {high:.3f}), true {TRUTH[name]}")
    print(f"{model.n_runs} runs and their gradients, {model.n_failed} failed, in {seconds:.0f} s")


if __name__ == "__main__":
    main()
