"""The real sample of CIFAR-10, where it is."""

from pathlib import Path

import pytest
import torch

import gradflow
from gradflow.problems import cifar

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not (REAL / cifar.FOLDER).is_dir(), reason="no CIFAR-10 sample")


def short_cifar_flow():
    """500 images, 3072-100-100-10 tanh, squared error."""
    data = cifar.cifar10("cifar10-1k", REAL)
    targets = torch.nn.functional.one_hot(data.train_targets[:500], 10).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Flatten()]
        for a, b in ((3072, 100), (100, 100)):
            layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
        net = torch.nn.Sequential(*layers, torch.nn.Linear(100, 10))
    dataset = torch.utils.data.TensorDataset(data.train_inputs[:500].float(), targets)
    return gradflow.LossFunction(dataset, gradflow.HalfSquaredError(), net)
