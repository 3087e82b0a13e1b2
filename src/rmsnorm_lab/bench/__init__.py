"""The benchmark behind ``rmsnorm bench``: this project's kernels beside their peers, verified, then timed in turn."""
