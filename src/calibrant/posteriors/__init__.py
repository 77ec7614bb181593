"""Posteriors over named, bounded parameters."""

from calibrant.posteriors._base import AbstractPosterior as AbstractPosterior
from calibrant.posteriors._base import Posterior as Posterior
from calibrant.posteriors._base import kl_from_prior as kl_from_prior
from calibrant.posteriors._flows import CouplingSplineFlow as CouplingSplineFlow
from calibrant.posteriors._flows import FullRankGaussian as FullRankGaussian
from calibrant.posteriors._flows import MaskedAutoregressiveFlow as MaskedAutoregressiveFlow
from calibrant.posteriors._flows import trainable as trainable
from calibrant.posteriors._samples import Chains as Chains
from calibrant.posteriors._samples import Particles as Particles
