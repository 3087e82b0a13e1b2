"""The colours of the norms that both the experiments and the benchmark draw."""

OF_NORM = {"none": "#7F7F7F", "layer": "#E69F00", "rms": "#2A7FC9", "prms": "#009E73"}
"""Near Okabe and Ito's palette, which colour-blind readers can distinguish."""
