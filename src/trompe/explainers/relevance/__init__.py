"""Layer-wise relevance propagation: record what a model does, then send relevance back through it.

``tape`` writes the operations of one forward pass down (``record``), ``operations`` says what they
are. Those that compute a weighted sum (``summation``), a product of tensors or a softmax
(``products``) share relevance out by the ``rules`` that ``composites`` choose; the others pass it on
(``routing``), of signal and gate (``gates``) to the signal. ``folding`` merges BatchNorm into its
neighbours, ``propagate`` walks the record backwards, ``conservation`` says what was lost on the way.
"""

from trompe.explainers.relevance import routing as routing
from trompe.explainers.relevance.composites import (
    COMPOSITES,
    RULE_NAMES,
    Choice,
    Composite,
    find_composite,
)
from trompe.explainers.relevance.conservation import conservation
from trompe.explainers.relevance.operations import register_rule
from trompe.explainers.relevance.propagate import Observer, propagate
from trompe.explainers.relevance.record import Operation, Value
from trompe.explainers.relevance.rules import (
    AlphaBeta,
    Box,
    Epsilon,
    Flat,
    Gamma,
    Pass,
    ReleasedSum,
    Rule,
    WSquare,
)
from trompe.explainers.relevance.tape import Tape

__all__ = [
    "COMPOSITES",
    "RULE_NAMES",
    "AlphaBeta",
    "Box",
    "Choice",
    "Composite",
    "Epsilon",
    "Flat",
    "Gamma",
    "Observer",
    "Operation",
    "Pass",
    "ReleasedSum",
    "Rule",
    "Tape",
    "Value",
    "WSquare",
    "conservation",
    "find_composite",
    "propagate",
    "register_rule",
]
