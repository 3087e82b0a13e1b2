"""The colour of each normaliser in every figure, told apart by colour-blind readers and on white and on dark alike."""

# Okabe and Ito's palette without its yellow, which a white page swallows.
COLOURS = {
    "none": "#7F7F7F",
    "l2": "#56B4E9",
    "weight": "#CC79A7",
    "batch": "#D55E00",
    "group": "#A6761D",
    "layer": "#E69F00",
    "rms": "#0072B2",
    "prms": "#009E73",
    "dyt": "#7570B3",
}
