"""The audit: was this model made to lie?"""

from trompe.audit.auditor import EXPLAINERS, AuditReport, audit
from trompe.audit.consensus import consensus
from trompe.audit.verdict import Calibration, Verdict, load_calibration

__all__ = [
    "EXPLAINERS",
    "AuditReport",
    "Calibration",
    "Verdict",
    "audit",
    "consensus",
    "load_calibration",
]
