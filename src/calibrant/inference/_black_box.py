"""The gradient of the posterior's parameters from losses alone.

It belongs to the method and not to `calibrant.estimators`: it needs the density of the posterior.
"""

import equinox as eqx


class FlowScore(eqx.Module):
    """The score of the flow: `d/dphi` from losses alone, for simulators that are black boxes.

    `d/dphi E[L] = E[(L - B) d log q_phi(theta) / dphi]` at fixed theta; the baseline `B` of a simulation is the mean
    loss of the others of the update (Ranganath, Gerrish, Blei 2014, arXiv 1401.0118; Kool et al. 2019). Unbiased
    whatever the simulator, and noisy: see the docs for what it costs.
    """
