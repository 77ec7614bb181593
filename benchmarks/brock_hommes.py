"""Milliseconds an update of generalised variational inference on Brock and Hommes.

One update: draws of the flow, 5 simulations of T = 100 with their gradients, KL on 1,000 draws, AdamW. Compilation is
reported apart. The last column is the ratio to a copy of 100 MB measured in the same run.

    python benchmarks/brock_hommes.py
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

import calibrant as cal

UPDATES, REPEATS = 200, 7


def seconds(run) -> float:
    """Median over repeats, after a warm-up."""
    jax.block_until_ready(run())
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def case(name: str, model: cal.models.BrockHommes, copy: float, **kwargs) -> None:
    data = cal.simulate(model, model.Params(), seed=1000).outputs
    problem = cal.Problem(model, data, cal.losses.MaximumMeanDiscrepancy(data, lags=4, bandwidth_factor=0.1))
    method = cal.GVI(weight=0.001, **kwargs)
    state = method.init(problem, cal.Prior.of(problem), 0)
    start = time.perf_counter()
    jax.block_until_ready(method.step(problem, state, UPDATES)[1].loss)
    first = time.perf_counter() - start
    each = seconds(lambda: method.step(problem, state, UPDATES)[1].loss) / UPDATES
    print(f"{name:58s} {each * 1e3:8.2f} ms   first call {first:6.1f} s   {each / copy:7.2f} copies", flush=True)


def main() -> None:
    big = jnp.zeros(25_000_000, jnp.float32)
    copy_program = jax.jit(lambda x: x + 1)
    copy = seconds(lambda: copy_program(big))
    print(f"JAX {jax.__version__} on {jax.devices()[0]}; a copy of 100 MB takes {copy * 1e3:.2f} ms")
    field, agents = cal.models.BrockHommes(None), cal.models.BrockHommes(1000)
    gumbel = cal.estimators.Pathwise(cal.GumbelSoftmax(0.1))
    for mode in (cal.ReverseMode(), cal.HybridMode()):
        label = type(mode).__name__
        case(f"mean field, {label}", field, copy, mode=mode)
        case(f"1,000 agents, straight-through, {label}", agents, copy, mode=mode)
        case(f"1,000 agents, Gumbel-softmax, {label}", agents, copy, mode=mode, estimator=gumbel)
    case("1,000 agents, straight-through, H = 1, ReverseMode", agents, copy, horizon=cal.SlidingHorizon(1))
    case("1,000 agents, straight-through, H = 3, ReverseMode", agents, copy, horizon=cal.SlidingHorizon(3))
    case("1,000 agents, no gradient (FlowScore)", agents, copy, estimator=cal.FlowScore())


if __name__ == "__main__":
    main()
