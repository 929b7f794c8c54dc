"""What the output of a network is: logits, probabilities, or neither. Labels and confidences come from no other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from deploy.model.card import OutputKind
from deploy.model.program import ModelError

MAX_SUM_ERROR = 1e-3  # of the probabilities of one image; float16 rounds each of 1,000 classes
MIN_CLASSES_OF_OLD_CARDS = 3  # without names two outputs are as often two measurements as two classes


def stated_output(stated: OutputKind | None, classes: bool, module: nn.Module, output: Tensor) -> OutputKind:
    """Return what the output (N, ...) of a new export is.

    stated: by the one who exports. classes: whether the classes have names, so that it is a classifier. module: the
    traced network. Raises ModelError if the statement cannot be true.
    """
    possible = _possible_kinds(output)
    if stated is not None and stated not in possible:
        raise ModelError(
            f"its output is not {stated}: for {len(output)} images it has shape {tuple(output.shape)}, "
            f"and can be {' or '.join(possible)}: correct or leave out --output"
        )
    if stated is not None:
        return stated
    if "probabilities" in possible:
        return "probabilities"
    return "logits" if classes and "logits" in possible and not _ends_in_sigmoid(module) else "none"


def check_stated_output(stated: OutputKind | None, output: Tensor) -> None:
    """Check that the output (N, ...) has the shape of what the card says it is. Raises ModelError."""
    if stated not in (None, "none") and (output.ndim != 2 or output.shape[1] < 2):
        raise ModelError(
            f"the card says that the output is {stated}, but an image gives shape {tuple(output.shape[1:])}: "
            "correct the card, or export the model again"
        )


def assumed_output(classes: bool, output: Tensor) -> OutputKind:
    """Return what the output (N, ...) is taken for if the card is of a version that does not say it."""
    possible = _possible_kinds(output)
    if "probabilities" in possible:
        return "probabilities"
    known = classes or (output.ndim == 2 and output.shape[1] >= MIN_CLASSES_OF_OLD_CARDS)
    return "logits" if known and "logits" in possible else "none"


def _possible_kinds(output: Tensor) -> list[OutputKind]:
    if output.ndim != 2 or output.shape[1] < 2 or not output.is_floating_point():
        return ["none"]
    sums = output.double().sum(1)
    if bool((output >= 0).all()) and bool(((sums - 1).abs() <= MAX_SUM_ERROR).all()):
        return ["probabilities", "none"]
    return ["logits", "none"]


def _ends_in_sigmoid(module: nn.Module) -> bool:
    """Whether each output is a probability of its own, as of several labels at once."""
    if not isinstance(module, GraphModule):
        return False
    last = module.graph.output_node().args[0]
    while isinstance(last, list | tuple):
        last = last[0]
    return isinstance(last, Node) and last.target in (torch.ops.aten.sigmoid.default, torch.ops.aten.sigmoid_.default)
