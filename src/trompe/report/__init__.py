"""From a run directory to one HTML file and to figures."""

from trompe.colour import colour_signed, overlay, signed_overlay
from trompe.report.card import write_card
from trompe.report.figures import figure
from trompe.report.html import write_report

__all__ = ["colour_signed", "figure", "overlay", "signed_overlay", "write_card", "write_report"]
