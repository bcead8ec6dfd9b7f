"""The spectrum service: eigenpairs and densities of any symmetric operator, the Hessian first."""

from gradflow.spectrum.arnoldi import largest_magnitude
from gradflow.spectrum.density import SpectralDensity
from gradflow.spectrum.eigenpairs import Eigenpairs
from gradflow.spectrum.operators import Operator, Preconditioned, SymmetricOperator, negated
from gradflow.spectrum.service import SpectrumService

__all__ = [
    "Eigenpairs", "Operator", "Preconditioned", "SpectralDensity", "SpectrumService", "SymmetricOperator",
    "largest_magnitude", "negated",
]  # fmt: skip
