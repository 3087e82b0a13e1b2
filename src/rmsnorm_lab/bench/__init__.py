"""``rmsnorm bench``: this project's kernels and their alternatives, verified, then timed interleaved."""
