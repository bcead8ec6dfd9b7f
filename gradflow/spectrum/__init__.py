"""The spectrum service: eigenpairs and densities of any symmetric operator, the Hessian first."""

from gradflow.spectrum.density import SpectralDensity
from gradflow.spectrum.eigenpairs import Eigenpairs
from gradflow.spectrum.operators import Preconditioned, SymmetricOperator
from gradflow.spectrum.service import SpectrumService

__all__ = ["Eigenpairs", "Preconditioned", "SpectralDensity", "SpectrumService", "SymmetricOperator"]
