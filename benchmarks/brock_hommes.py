"""Milliseconds an update of generalised variational inference on Brock and Hommes.

One update: draws of the flow, 5 simulations of T = 100 with their gradients, KL on 1,000 draws, AdamW. Compilation is
reported apart. The last column is the ratio to a copy of 100 MB measured in the same run.

    python benchmarks/brock_hommes.py [--out brock_hommes.json]
"""

import argparse
from pathlib import Path

import jax
from measuring import Results, copying, timed

import calibrant as cal

UPDATES, REPEATS = 200, 7


def case(results: Results, name: str, model: cal.models.BrockHommes, **kwargs) -> None:
    data = cal.simulate(model, model.Params(), seed=1000).outputs
    problem = cal.Problem(model, data, cal.losses.MaximumMeanDiscrepancy(data, lags=4, bandwidth_factor=0.1))
    method = cal.GVI(weight=0.001, **kwargs)
    state = method.init(problem, cal.Prior.of(problem), 0)
    times = timed(lambda: method.step(problem, state, UPDATES)[1].loss, REPEATS)
    row = results.time(f"an update, {name}", times.over(UPDATES), first_call=times.first)
    first, copies = times.first, row["copies"]
    print(f"{name:58s} {row['seconds'] * 1e3:8.2f} ms   first call {first:6.1f} s   {copies:7.2f} copies", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    with Results("brock_hommes", parser.parse_args().out) as results:
        copy = copying().seconds
        print(f"JAX {jax.__version__} on {jax.devices()[0]}; a copy of 100 MB takes {copy * 1e3:.2f} ms", flush=True)
        field, agents = cal.models.BrockHommes(None), cal.models.BrockHommes(1000)
        gumbel = cal.estimators.Pathwise(cal.GumbelSoftmax(0.1))
        for mode in (cal.ReverseMode(), cal.HybridMode()):
            label = type(mode).__name__
            case(results, f"mean field, {label}", field, mode=mode)
            case(results, f"1,000 agents, straight-through, {label}", agents, mode=mode)
            case(results, f"1,000 agents, Gumbel-softmax, {label}", agents, mode=mode, estimator=gumbel)
        case(results, "1,000 agents, straight-through, H = 1, ReverseMode", agents, horizon=cal.SlidingHorizon(1))
        case(results, "1,000 agents, straight-through, H = 3, ReverseMode", agents, horizon=cal.SlidingHorizon(3))
        case(results, "1,000 agents, no gradient (FlowScore)", agents, estimator=cal.FlowScore())


if __name__ == "__main__":
    main()
