"""RMSNorm, also of a sum, rounded to eight bits with one scale per row, for the matrix product that follows."""
