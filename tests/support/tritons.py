"""The Tritons that are tested: the installed one and the oldest that is served, in a folder of its own."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
OLDEST = {"3.6.0": ROOT / "build" / "triton-3.6.0"}
