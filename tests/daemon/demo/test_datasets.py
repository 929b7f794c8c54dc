"""The digit network: trained once, the same for the same seed, and good enough."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from daemon.demo import datasets, networks
from daemon.demo.datasets import digits_dataset
from daemon.demo.digits import DemoError, Split
from daemon.simulation.drifts import parse_drift


def test_training_depends_on_the_seed_alone(splits, monkeypatch):
    monkeypatch.setattr(datasets, "EPOCHS", 1)
    few = Split(*(part[:200] for part in splits[0]))
    shares = []
    first = datasets.train_network(few, 1, shares.append).state_dict()
    torch.rand(5)
    second = datasets.train_network(few, 1, shares.append).state_dict()
    other = datasets.train_network(few, 2, shares.append).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])
    assert shares[-1] == 1.0 and sorted(shares[: len(shares) // 3]) == shares[: len(shares) // 3]


def test_the_shipped_statistics_are_those_of_the_clean_pictures(splits):
    network, images = networks.digits_resnet(), splits[0].images[:600]
    datasets.estimate_statistics(network, images)
    with torch.no_grad():
        features = network.conv1(datasets.normalise_digits(images))
    torch.testing.assert_close(network.bn1.running_mean, features.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(network.bn1.running_var, features.var(dim=(0, 2, 3)), rtol=0.02, atol=1e-3)


def test_weights_are_kept_where_the_environment_says_and_apart_by_seed(tmp_path):
    assert datasets.cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "recald"
    assert datasets.cache_folder({"HOME": "/home/a"}) == Path("/home/a/.cache/recald")
    assert (
        datasets.weights_path(tmp_path, 0) == datasets.weights_path(tmp_path, 0) != datasets.weights_path(tmp_path, 1)
    )


def test_a_network_that_learned_too_little_is_not_kept(splits, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "EPOCHS", 1)
    few = Split(*(part[:128] for part in splits[0]))
    with pytest.raises(DemoError, match="another --seed"):
        datasets.train_and_save(tmp_path / "w.safetensors", few, splits[1], 0, lambda done: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_digit_network_is_good_and_the_default_drift_takes_a_third():
    """Trained now, or by `make demo` before: its file is named by the hash of the code, of torch and of the seed."""
    from daemon.demo.run import DEFAULT_DRIFT

    shown = digits_dataset(0, Console(file=io.StringIO()))
    network = networks.digits_resnet().eval()
    network.load_state_dict(load_file(shown.network.weights))
    clean = Split(shown.images, shown.labels, shown.labels)
    drift = parse_drift(DEFAULT_DRIFT, 0)
    drifted = clean._replace(images=np.stack([drift(image) for image in clean.images]))
    assert datasets.accuracy(network, clean) >= 0.97
    assert datasets.accuracy(network, clean) - datasets.accuracy(network, drifted) >= 0.30
