"""CIFAR-10: files that look like the official ones, and the real sample where it is."""

import hashlib
import http.server
import pickle
import tarfile
import threading

import numpy as np
import pytest
import torch
from helpers.cifar import REAL, needs_real_data, short_cifar_flow
from helpers.cli import config, invoke

import gradflow
from gradflow import open_run, problems
from gradflow.errors import DatasetNotFoundError, InvalidInputError
from gradflow.problems import cifar


def batch(n, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
    pixels[:, 17] = 9  # a feature that never varies
    return {b"data": pixels, b"labels": rng.integers(0, 10, n).tolist()}


@pytest.fixture
def folder(tmp_path):
    """Batches of unequal lengths, 5 × about 230 training images."""
    root = tmp_path / cifar.FOLDER
    root.mkdir()
    for k, name in enumerate(
        ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    ):
        (root / name).write_bytes(pickle.dumps(batch(230 + k, k), protocol=3 + k % 2))
    return tmp_path


def test_normalisation_is_over_the_whole_training_set_before_the_subset_is_taken(folder):
    parts = [batch(230 + k, k) for k in range(6)]
    pixels = np.concatenate([p[b"data"] for p in parts[:5]]).astype(np.float64)
    mean, deviation = pixels.mean(0), pixels.std(0)
    deviation[17] = 1.0
    expected = ((pixels - mean) / deviation).reshape(-1, 3, 32, 32)
    whole = cifar.cifar10("cifar10", folder)
    assert whole.train_inputs.shape == (5 * 230 + 10, 3, 32, 32)
    assert np.allclose(whole.train_inputs, expected, atol=1e-12)
    assert whole.train_targets.tolist() == [label for p in parts[:5] for label in p[b"labels"]]
    test = (parts[5][b"data"] - mean) / deviation
    assert np.allclose(whole.test_inputs.reshape(235, -1), test, atol=1e-12)
    first = cifar.cifar10("cifar10-1k", folder)
    assert torch.equal(first.train_inputs, whole.train_inputs[:1000])
    assert torch.equal(first.test_inputs, whole.test_inputs)
    assert first.statistics == whole.statistics
    assert first.statistics.startswith("1160 training images, SHA-256 ")


def test_the_archive_gives_what_the_folder_gives(folder, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / cifar.ARCHIVE, "w:gz") as tar:
        tar.add(folder / cifar.FOLDER, cifar.FOLDER)
    a, b = cifar.cifar10("cifar10-1k", folder), cifar.cifar10("cifar10-1k", packed)
    assert torch.equal(a.train_inputs, b.train_inputs)
    assert torch.equal(a.test_targets, b.test_targets)


def test_the_directory_may_come_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv(cifar.VARIABLE, str(folder))
    train, test, theta = problems.load("cifar10-1k", "fc-tanh-depth1", "mse")
    assert (train.n_samples, test.n_samples, len(theta)) == (1000, 235, 616_610)
    assert train.describe()["statistics"].startswith("1160 training images")
    assert train.classifies


def test_missing_data_say_where_to_get_them(tmp_path, monkeypatch):
    monkeypatch.delenv(cifar.VARIABLE, raising=False)
    with pytest.raises(
        DatasetNotFoundError, match=r"set GRADFLOW_DATA.*cs.toronto.edu.*gradflow fetch cifar10"
    ):
        problems.load("cifar10", "fc-tanh", "mse")
    with pytest.raises(
        FileNotFoundError, match=r"expected cifar-10-batches-py/ or cifar-10-python.tar.gz there"
    ):
        problems.load("cifar10", "fc-tanh", "mse", data=tmp_path)
    result = invoke(
        "run", "cifar10", "fc-tanh", "mse", "--method", "gd", "--lr", 0.1, "--t-max", 1, "--data", tmp_path
    )
    assert result.exit_code == 1
    assert "Get it from" in result.output


def test_incomplete_or_too_small_data_are_refused(folder):
    with pytest.raises(InvalidInputError, match=r"first 2,000 training images; there are 1,160"):
        cifar.cifar10("cifar10-2k", folder)
    (folder / cifar.FOLDER / "data_batch_3").unlink()
    with pytest.raises(DatasetNotFoundError, match="data_batch_3 is missing"):
        cifar.cifar10("cifar10", folder)


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (pickle.dumps(Evil()), "asks for builtins.print"),
        (pickle.dumps({b"data": Evil(), b"labels": []}), "asks for builtins.print"),
        (b"not a pickle", "isn't a CIFAR-10 batch"),
        (b"", "isn't a CIFAR-10 batch"),
        (pickle.dumps([1, 2]), r"shape \(n, 3072\)"),
        (
            pickle.dumps({b"data": np.zeros((3, 10), np.uint8), b"labels": [1, 2, 3]}, protocol=4),
            r"shape \(n, 3072\)",
        ),
        (pickle.dumps({b"data": np.zeros((3, 3072)), b"labels": [1, 2, 3]}, protocol=4), "in uint8"),
        (
            pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [1, 2]}, protocol=4),
            "expected 3 labels",
        ),
        (
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 12]}, protocol=4),
            "from 0 to 9",
        ),
    ],
)
def test_files_that_are_no_batches_are_refused_and_run_nothing(folder, content, text, capsys):
    (folder / cifar.FOLDER / "data_batch_2").write_bytes(content)
    with pytest.raises(InvalidInputError, match=text):
        cifar.cifar10("cifar10", folder)
    assert "must not run" not in capsys.readouterr().out


def test_fetch_downloads_and_checks(tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    content = b"an archive" * 100
    (served / cifar.ARCHIVE).write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(served))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(cifar, "URL", f"http://127.0.0.1:{server.server_address[1]}/{cifar.ARCHIVE}")
        result = invoke("fetch", "cifar10", "--data", tmp_path / "bad")
        assert result.exit_code == 1
        assert "The download failed" in result.output
        assert not (tmp_path / "bad" / cifar.ARCHIVE).exists()
        monkeypatch.setattr(cifar, "SHA256", hashlib.sha256(content).hexdigest())
        result = invoke("fetch", "cifar10", "--data", tmp_path / "good")
        assert result.exit_code == 0, result.output
        assert (tmp_path / "good" / cifar.ARCHIVE).read_bytes() == content
        server.shutdown()


# ---------------------------------------------------------------------- the real images


@pytest.mark.slow
@needs_real_data
def test_a_run_on_the_real_images_from_the_command_line(tmp_path):
    path = tmp_path / "x.nc"
    result = invoke("run", "cifar10-1k", "fc-tanh", "mse", "--method", "dopri5", "--t-max", 0.05, "--save-every", 0.05,
                    "--n-eigs", 2, "--data", REAL, "--out", path)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert config(path)["loss"]["statistics"].startswith("5000 training images")
    with open_run(path) as ds:
        assert ds.attrs["n_parameters"] == 656_810
        assert float(ds.eigenvalue[0, 0]) > 20
        assert float(ds.train_loss[-1]) < float(ds.train_loss[0])


@pytest.mark.slow
@needs_real_data
def test_capped_dopri5_arrives_where_a_fine_rk4_does():
    loss = short_cifar_flow()
    theta = loss.parameters()
    options = {"t_max": 1.0, "save_every": 1.0}
    fine = gradflow.integrate(loss, theta, method="rk4", **options)  # itself within 2e-4 of alpha=0.5
    capped = gradflow.integrate(loss, theta, method="dopri5", **options)
    distance = np.linalg.norm(capped.params - fine.params)
    assert distance < 0.01 * np.linalg.norm(fine.params - theta.numpy())
    assert capped.attrs["n_loss_increases"] == 0
    assert int(capped.n_gradients[-1]) < int(fine.n_gradients[-1])
