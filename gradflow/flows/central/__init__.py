"""The central flow: what an optimiser follows on average at the edge of stability."""
