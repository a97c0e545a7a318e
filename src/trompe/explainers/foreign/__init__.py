"""Other libraries of explanations: theirs as our explainers, ours behind their interfaces.

A module for each; it needs the library of its name (``pip install 'trompe[captum]'`` and so on).
"""
