"""What a tensor was computed from, by the graph that autograd keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

Node = Any


def node_of(tensor: Tensor) -> Node:
    """The node that computed a tensor; of a leaf, the one where its gradient gathers."""
    return get_gradient_edge(tensor).node


def nodes_behind(
    starts: Iterable[Node], stop: Callable[[Node], bool] = lambda _: False
) -> set[Node]:
    """The nodes that ``starts`` were computed from, they too; not beyond those that ``stop``."""
    found = set(starts)
    pending = [node for node in found if not stop(node)]
    while pending:
        for node in inputs_of(pending.pop()):
            if node not in found:
                found.add(node)
                if not stop(node):
                    pending.append(node)
    return found


def inputs_of(node: Node) -> Iterator[Node]:
    """The nodes whose results this one takes."""
    return (node for node, _ in node.next_functions if node is not None)
