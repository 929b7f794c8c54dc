"""Fixtures of the demo's tests; what takes seconds is made once."""

import pytest
from safetensors.torch import save

from daemon.demo import datasets
from daemon.demo.digits import make_splits
from daemon.demo.processes import Network


@pytest.fixture(scope="session")
def splits():
    return make_splits(3, train_renderings=1, test_renderings=2)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A frozen digit network with random weights and real statistics, and the pictures these came from."""
    path = tmp_path_factory.mktemp("model") / "model.pt2"
    images = make_splits(0, train_renderings=1, test_renderings=1)[1].images
    network = datasets.new_network(0)
    datasets.estimate_statistics(network, images)
    weights = path.with_name("w.safetensors")
    weights.write_bytes(save(network.state_dict()))
    return Network(
        "daemon.demo.networks:digits_resnet", weights, datasets.DIGITS_MEAN, datasets.DIGITS_STD, tuple("0123456789")
    ), path
