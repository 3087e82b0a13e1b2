"""The paper's experiments and today's: train the same model with each normaliser, compare quality and time."""
