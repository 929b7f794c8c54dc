"""The demo's picture: a tile for each image, and rows that show what the network sees."""

import cv2
import numpy as np
import torch

from calibrate.homogenizer import Homogenizer
from daemon.demo import datasets
from daemon.demo.bookkeeping import BEFORE, DRIFTED, RECOVERED
from daemon.demo.datasets import Dataset
from daemon.demo.digits import make_splits
from daemon.demo.picture import PictureRow, comparison_rows, draw_picture
from daemon.simulation.drifts import parse_drift
from deploy.files import digest_file
from deploy.model.export import export_model
from deploy.store.artefacts import ArtefactStore


def test_the_picture_has_a_tile_for_each_image_below_each_other():
    images = np.zeros((3, 32, 32, 3), np.uint8)
    images[1] = (255, 0, 0)
    names, right = ["cat", "dog", "ship"], [True, False, True]
    rows = [PictureRow(title, "50 % right", images, names, right) for title in ("a", "b")]
    picture = cv2.imdecode(np.frombuffer(draw_picture(rows), np.uint8), cv2.IMREAD_COLOR)
    red = (picture == (0, 0, 255)).all(axis=2)  # OpenCV reads BGR
    assert red.sum() == 2 * 128 * 128
    assert len(np.unique(np.nonzero(red)[1])) == 128  # in one column


def test_the_rows_of_the_picture_are_clean_drifted_and_restored(model, tmp_path):
    network, path = model
    export_model(network.builder, network.weights, path, input_shape=(3, 32, 32), mean=network.mean, std=network.std)
    images = make_splits(0, train_renderings=1, test_renderings=1)[1]
    shown = Dataset("digits", images.images, images.labels, network)
    drift = parse_drift("black-level=-51")
    accuracies = {BEFORE: 0.99, DRIFTED: 0.5, RECOVERED: None}
    arguments = (shown, drift, accuracies)
    assert [row.title for row in comparison_rows(path, tmp_path, "front", *arguments)] == ["clean", "drifted"]

    undo = Homogenizer(3, 32, 32)
    with torch.no_grad():
        undo.offset += 51 / 255 / datasets.DIGITS_STD[0]
    store, digest = ArtefactStore(tmp_path), digest_file(path)
    store.point("front", store.put(undo, {"model": digest}, b"compiled", "eager"), digest, now=0.0)
    clean, drifted, restored = comparison_rows(path, tmp_path, "front", *arguments)
    assert (clean.note, drifted.note, restored.title) == ("99.0% right", "50.0% right", "restored")
    assert len(clean.images) == 8 and len(set(images.labels[:500])) == 10
    whole = clean.images > 51  # what the drift did not clip
    assert np.abs(restored.images[whole].astype(int) - clean.images[whole]).max() <= 1
    assert (np.abs(drifted.images[whole].astype(int) - clean.images[whole]) == 51).all()
