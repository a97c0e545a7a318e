"""What the product costs, as ratios within one process: ``python -m benchmarks``."""
