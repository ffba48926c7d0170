"""How two folders of weights differ; tensors are loaded one at a time."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from ahn.checkpoint.weights import Weights, existing_folder
from ahn.io.progress import Report, counted

BLOCK = 2**22  # numbers compared at a time


@dataclass(frozen=True)
class Difference:
    """A tensor that both folders hold and that is not the same in both.

    Attributes:
        left, right: shape and dtype in each folder.
        distance: the largest difference of two numbers; None where the shapes differ.
    """

    key: str
    left: str
    right: str
    distance: float | None


@dataclass(frozen=True)
class Diff:
    """How two folders differ; `differing` begins with the largest distance, true if they do."""

    only_left: list[str]
    only_right: list[str]
    differing: list[Difference]
    equal: int  # tensors that are the same, bit for bit

    def __bool__(self) -> bool:
        return bool(self.only_left or self.only_right or self.differing)


def diff(
    left: str | os.PathLike[str],
    right: str | os.PathLike[str],
    *,
    progress: Report | None = None,
) -> Diff:
    """The tensors that only one folder holds, and how far apart the shared ones are.

    Args:
        progress: told how many tensors have been compared.

    Raises ValueError where a folder holds no weights in safetensors.
    """
    a, b = Weights.of(existing_folder(left)), Weights.of(existing_folder(right))
    shared = sorted(a.files.keys() & b.files.keys())
    left_kinds, right_kinds = a.shapes_and_dtypes(), b.shapes_and_dtypes()
    pairs = (
        (key, (a, *left_kinds[key]), (b, *right_kinds[key]))
        for key in counted(shared, "comparing", progress)
    )
    differing = [difference for pair in pairs if (difference := _difference(*pair))]
    differing.sort(key=lambda d: -math.inf if d.distance is None else -d.distance)
    return Diff(
        sorted(a.files.keys() - b.files.keys()),
        sorted(b.files.keys() - a.files.keys()),
        differing,
        len(shared) - len(differing),
    )


_Side = tuple[Weights, list[int], str]  # the folder's weights, a tensor's shape and dtype


def _difference(key: str, one_side: _Side, other_side: _Side) -> Difference | None:
    (a, left_shape, left), (b, right_shape, right) = one_side, other_side
    names = f"{left_shape} {left}", f"{right_shape} {right}"
    if left_shape != right_shape:
        return Difference(key, *names, None)
    one, other = a.load(key).flatten(), b.load(key).flatten()
    if left == right and torch.equal(one, other):
        return None
    blocks = zip(one.split(BLOCK), other.split(BLOCK))
    distance = max((_distance(*pair) for pair in blocks if pair[0].numel()), default=0.0)
    return Difference(key, *names, distance)


def _distance(one: Tensor, other: Tensor) -> float:
    return (one.double() - other.double()).abs().max().item()
