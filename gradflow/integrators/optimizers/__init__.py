"""Optimisers of torch.optim's interface, as methods."""
