"""An external program, calibrated from its losses alone: the epidemic of sir.awk.

    python examples/external_program.py [--updates 200]

Needs awk, which every Unix has.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import numpyro.distributions as dist

import calibrant as cal
from calibrant.black_box import Command, Csv

PROGRAM = Path(__file__).with_name("sir.awk")
TRUTH = {"beta": 0.4, "gamma": 0.1}

model = cal.BlackBox(
    Command(
        ["awk", "-f", str(PROGRAM), "-v", "beta={beta}", "-v", "gamma={gamma}", "-v", "initial=5", "-v", "seed={seed}"],
        Csv(),
    ),
    parameters={
        "beta": cal.parameter(0.5, prior=dist.LogNormal(-0.7, 0.7), units="1/day", description="transmission rate"),
        "gamma": cal.parameter(0.2, prior=dist.LogNormal(-1.6, 0.5), units="1/day", description="recovery rate"),
    },
    outputs={"infected": (40,), "recovered": (40,)},
    timeout=10.0,
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--updates", type=int, default=200)
    updates = parser.parse_args(arguments).updates

    data = {k: np.asarray(x) for k, x in cal.simulate(model, model.Params(**TRUTH), seed=1).outputs.items()}
    loss = cal.losses.MarginalLikelihood(
        cal.losses.Streams(dict.fromkeys(data, cal.losses.GaussianLogLikelihood(25.0)))
    )
    problem = cal.Problem(model, data, loss)
    method = cal.GVI(
        estimator=cal.FlowScore(),
        simulations=20,
        replicates=5,
        max_updates=updates,
        learning_rate=4e-2,
        final_learning_rate=4e-3,
        family=cal.posteriors.FullRankGaussian(),
    )
    start = time.perf_counter()
    calibration = cal.calibrate(problem, method=method, seed=0)
    seconds = time.perf_counter() - start
    for name, (low, median, high) in calibration.quantiles().items():
        print(f"{name}: {median:.3f} ({low:.3f} to {high:.3f}), true {TRUTH[name]}")
    print(f"{model.n_runs} runs of awk, {model.n_failed} failed, in {seconds:.0f} s")


if __name__ == "__main__":
    main()
