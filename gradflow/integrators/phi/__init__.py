"""The φ-functions of exponential integrators, and spaces in which they act on vectors."""
