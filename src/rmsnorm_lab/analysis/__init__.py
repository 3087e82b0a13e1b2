"""The paper's analysis, measured: invariances (Table 1) and gradients under re-scaling (§4.2)."""
