"""Every reader of trompe against input that is mutated or made up."""
