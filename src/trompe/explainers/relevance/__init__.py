"""Layer-wise relevance propagation: record what a model does, then send relevance back through it.

``tape`` records the operations of one forward pass; ``rules`` say how one operation shares
relevance among its inputs; ``composites`` choose the rule for each operation; ``propagate`` walks
the record backwards.
"""

from trompe.explainers.relevance.composites import COMPOSITES, Composite
from trompe.explainers.relevance.propagate import propagate
from trompe.explainers.relevance.rules import register_operation
from trompe.explainers.relevance.tape import Operation, Tape, Value

__all__ = [
    "COMPOSITES",
    "Composite",
    "Operation",
    "Tape",
    "Value",
    "propagate",
    "register_operation",
]
