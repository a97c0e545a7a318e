"""The audit: was this model made to lie?"""

from trompe.audit.auditor import EXPLAINERS, audit
from trompe.audit.consensus import consensus
from trompe.audit.evidence import DEFAULT, EVIDENCE, Drift, Evidence, Picture
from trompe.audit.observe import Maps, Observations
from trompe.audit.report import AuditReport
from trompe.audit.verdict import Calibration, Verdict, load_calibration

__all__ = [
    "DEFAULT",
    "EVIDENCE",
    "EXPLAINERS",
    "AuditReport",
    "Calibration",
    "Drift",
    "Evidence",
    "Maps",
    "Observations",
    "Picture",
    "Verdict",
    "audit",
    "consensus",
    "load_calibration",
]
