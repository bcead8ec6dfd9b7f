"""Fixtures that the whole suite shares."""

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def global_generator_untouched():
    """Nothing in gradflow may draw from, or seed, torch's global generator."""
    torch.manual_seed(20261120)
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global generator was touched"


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
