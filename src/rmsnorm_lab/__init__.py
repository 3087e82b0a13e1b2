"""The laboratory beside the library: the benchmark, the paper's experiments, their analysis and report."""
