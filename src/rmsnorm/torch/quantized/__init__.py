"""RMSNorm whose result is rounded to eight bits, with one scale per row, for the matrix product that follows."""
