"""The training loop that everybody writes, to which optimisers are compared bit for bit."""

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler


def plain_loop(net, criterion, data, make, n, *, scheduler=None, batches=None, clip=None, per=1):
    """Train a net for n steps, which it is changed by; θ after every step.

    ``make(parameters)`` makes the optimiser; `batches` has the rows of each step; a scheduler is stepped every `per`
    steps.
    """
    inputs, targets = data
    optimizer = make(net.parameters())
    schedule = None if scheduler is None else scheduler(optimizer)
    thetas, losses = [], []
    for i in range(n):
        rows = slice(None) if batches is None else batches[i]

        def closure(rows=rows):
            optimizer.zero_grad()
            loss = criterion(net(inputs[rows]), targets[rows])
            loss.backward()
            if clip is not None:
                clip(net.parameters())
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            losses.append(closure().item())
            optimizer.step()
        if schedule is not None and (i + 1) % per == 0:
            metric = (np.mean(losses[-per:]),) if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else ()
            schedule.step(*metric)
        thetas.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
    return torch.stack(thetas).numpy()
