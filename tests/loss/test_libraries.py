"""Models of other libraries as they are, made from configurations; skipped where a library isn't installed."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import gradflow
from gradflow import LossFunction

N, VOCABULARY = 12, 20


class Items(Dataset):
    """Items that are dictionaries."""

    def __init__(self, **tensors):
        self.tensors = tensors

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {name: tensor[i] for name, tensor in self.tensors.items()}


def tokens():
    ids = torch.randint(VOCABULARY, (N, 7), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[::3, 3:] = -100
    return {"input_ids": ids, "labels": labels}


def classified(**inputs):
    return {**inputs, "labels": torch.arange(N) % 2}


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
OF_TRANSFORMERS = {
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
        | dict.fromkeys(("bos_token_id", "eos_token_id"), 0),
        tokens,
    ),
    "LlamaForCausalLM": ("LlamaConfig", SIZES | {"vocab_size": VOCABULARY}, tokens),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        | {"decoder_start_token_id": 0},
        tokens,
    ),
    "BertForSequenceClassification": (
        "BertConfig",
        SIZES | {"vocab_size": VOCABULARY},
        lambda: classified(input_ids=tokens()["input_ids"]),
    ),
    "ViTForImageClassification": (
        "ViTConfig",
        SIZES | {"image_size": 8, "patch_size": 4},
        lambda: classified(pixel_values=torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(0))),
    ),
}


@pytest.mark.filterwarnings("ignore::gradflow.errors.CheckWarning")  # some compute in float32 whatever θ is
@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_transformers_with_their_own_loss(name):
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    config, options, make = OF_TRANSFORMERS[name]
    try:
        kind = getattr(transformers, name)
    except ModuleNotFoundError as error:  # it needs what isn't installed
        pytest.skip(str(error))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = kind(getattr(transformers, config)(**options)).double()
    net.train()
    batch = make()
    whole = {key: t.double() if t.is_floating_point() else t for key, t in batch.items()}
    net.eval()
    value = net(**whole).loss
    gradient = torch.autograd.grad(value, list(net.parameters()), allow_unused=True, materialize_grads=True)
    expected = torch.cat([g.reshape(-1) for g in gradient])
    net.train()
    for batch_size in (None, 5):
        loss = LossFunction(Items(**batch), net=net, batch_size=batch_size, mode="eval")
        theta = loss.parameters()
        found, slope = loss.gradient(theta)
        assert float(found) == pytest.approx(float(value.detach()), rel=1e-6)
        assert float((slope - expected).norm() / expected.norm()) < 1e-6
        v = torch.randn(len(theta), generator=torch.Generator().manual_seed(1), dtype=theta.dtype)
        lin = loss.linearize(theta)
        u = torch.randn(len(theta), generator=torch.Generator().manual_seed(2), dtype=theta.dtype)
        assert float(u @ lin.hvp(v)) == pytest.approx(float(v @ lin.hvp(u)), rel=1e-3)
    assert net.training


def test_graphs_of_torch_geometric():
    geometric = pytest.importorskip("torch_geometric", exc_type=ImportError)
    from torch_geometric.data import Batch, Data

    graphs = []
    for i in range(10):
        n = 3 + i % 4
        ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
        x = torch.randn(n, 3, generator=torch.Generator().manual_seed(i))
        graphs.append(Data(x=x, edge_index=torch.cat([ring, ring.flip(0)], 1), y=torch.tensor([i % 2])))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = geometric.nn.GCNConv(3, 8), nn.Linear(8, 2)

        def forward(self, data):
            h = torch.tanh(self.conv(data.x, data.edge_index))
            return self.head(geometric.nn.global_mean_pool(h, data.batch))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().double()

    def each(net, batch):
        return F.cross_entropy(net(batch), batch.y, reduction="none")

    whole = Batch.from_data_list(graphs)
    whole.x = whole.x.double()
    expected = float(each(net, whole).mean().detach())
    losses = [
        LossFunction(graphs, loss_fn=each, net=net, collate_fn=Batch.from_data_list, batch_size=k)
        for k in (10, 4)
    ]
    losses.append(LossFunction(geometric.loader.DataLoader(graphs, batch_size=3), loss_fn=each, net=net))
    for loss in losses:
        assert float(loss(loss.parameters())) == pytest.approx(expected, rel=1e-13)
        assert loss.check().passed
    assert graphs[0].x.dtype == torch.float32
    a, b = (gradflow.integrate(loss, t_max=1.0, save_every=0.5) for loss in losses[:2])
    np.testing.assert_allclose(a.train_loss, b.train_loss, rtol=1e-9)
