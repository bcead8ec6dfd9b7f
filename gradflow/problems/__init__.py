"""Named problems: a data set, a network and a loss, ready to integrate."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownNameError, suggest
from gradflow.loss import HalfSquaredError, LossFunction, token_cross_entropy
from gradflow.problems.datasets import load_data
from gradflow.problems.networks import make_network

#: The losses by name.
LOSSES = {"mse": HalfSquaredError, "ce": nn.CrossEntropyLoss}


def load(
    dataset: str,
    arch: str,
    loss: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    data: str | os.PathLike[str] | None = None,
    **loss_options: Any,
) -> tuple[LossFunction, LossFunction, Tensor]:
    """Load a problem by name.

    Parameters
    ----------
    dataset : str
        ``digits``; ``chebyshev-K-N`` such as ``chebyshev-3-20``; ``linear-50-50``; ``moons``, ``circles``;
        ``completion-N-R``, an N × N matrix of rank R; ``sort-V-T``, ``copy-V-T``, T of V symbols; ``chars-T``, a text
        in windows of T characters; ``cifar10``, or ``cifar10-1k``, ``-2k``, ``-5k``, ``-10k``, ``-20k`` for its first
        training images.
    arch : str
        ``fc-tanh`` (``fc-relu``, ``-gelu``, ``-elu``, ``-hardtanh``, ``-softplus``), also with ``-depthN``;
        ``cnn-tanh``, ``cnn-avgpool-tanh``, ``cnn-bn-tanh`` (or another activation); ``vgg11``, ``vgg11-bn``,
        ``resnet32``, ``resnet20-gn``, ``vit-tiny``, ``deeplinear``, ``deep-linear-D-W-S``, ``regression``; for symbols
        ``transformer``, ``gpt``, ``lstm``, ``scan``; ``factors`` for matrices: see
        :func:`gradflow.problems.networks.make_network`. Networks with batch-norm are in train mode: their statistics
        are those of each chunk of `batch_size` samples, on the test set too, so the loss is the mean over fixed ghost
        batches.
    loss : {"mse", "ce"}
        ``mse`` is ½‖output − target‖² summed over outputs, with one-hot targets for classes; ``ce`` is
        cross-entropy, of sequences over all places that count. Both are means.
    seed : int
        Seed of the initial weights. The global generator isn't touched, and the weights are the same on every
        device, and in every dtype but for rounding.
    dtype, device
        Dtype and device of networks, data and θ₀.
    data : path, optional
        Directory with ``cifar-10-batches-py/`` or ``cifar-10-python.tar.gz``. Default: ``$GRADFLOW_DATA``.
    **loss_options
        Options of :class:`gradflow.LossFunction`, such as ``batch_size``, for both losses.

    Returns
    -------
    train, test : LossFunction
        On the training and the test set; they share the network.
    params : Tensor, shape (P,)
        The initial weights θ₀, flat.

    Examples
    --------
    >>> train, test, params = load("chebyshev-3-20", "regression", "mse", seed=1)
    >>> params.shape
    torch.Size([300])
    """
    if loss not in LOSSES:
        raise UnknownNameError(f"No loss {loss!r}; {suggest(loss, LOSSES)}")
    if dtype not in {torch.float32, torch.float64}:
        raise InvalidTypeError(f"Expected dtype float32 or float64, got {dtype}.")
    device = _device(device)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InvalidInputError(f"Expected seed as an int in [0, 2⁶³), got {seed!r}.")
    loaded = load_data(dataset, data)
    if loss == "ce" and loaded.n_classes is None:
        raise InvalidInputError(f"The loss ce needs classes; {dataset} has values for targets. Use mse.")
    if loss == "mse" and loaded.is_of_sequences and bool((loaded.train_targets < 0).any()):
        raise InvalidInputError(
            f"In {dataset} not all places count, which the loss mse can't leave out. Use ce."
        )
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        torch.set_default_dtype(torch.float32)  # the same numbers whatever the default is
        try:
            n_symbols = (loaded.n_symbols or loaded.n_classes) if loaded.is_of_symbols else None
            net = make_network(arch, loaded.shape, loaded.n_outputs, n_symbols)
        finally:
            torch.set_default_dtype(default)
    net = net.to(device, dtype)

    def make(inputs: Tensor, targets: Tensor, **options: Any) -> LossFunction:
        if loaded.n_classes is not None and loss == "mse":
            targets = F.one_hot(targets, loaded.n_classes).to(torch.float64)
        criterion = token_cross_entropy if loss == "ce" and loaded.is_of_sequences else LOSSES[loss]()
        tensors = TensorDataset(*(_as_dtype(t, dtype).to(device) for t in (inputs, targets)))
        made = LossFunction(tensors, criterion, net, **options)
        named = made.label(dataset=dataset, arch=arch, loss=loss, seed=seed)
        return named.label(statistics=loaded.statistics) if loaded.statistics else named

    train = make(loaded.train_inputs, loaded.train_targets, **loss_options)
    # The check has looked at the net and the criterion already.
    test = make(loaded.test_inputs, loaded.test_targets, **loss_options | {"check": None})
    return train, test, train.parameters()


def _device(name: torch.device | str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInputError(f"No device {name!r}; expected cpu, cuda, or cuda:N.") from error
    if device.type == "meta":
        raise InvalidInputError("The meta device holds no numbers; expected cpu, cuda, or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(
            "CUDA isn't available: torch sees no GPU, or is a build for the CPU. Use cpu."
        )
    return device


def _as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


__all__ = ["LOSSES", "load"]
