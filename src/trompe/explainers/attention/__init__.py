"""Explanations of transformers by what their tokens attend to."""
