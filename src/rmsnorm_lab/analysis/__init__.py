"""The paper's analysis, measured: invariances (Table 1), gradients under re-scaling (§4.2), and pRMSNorm's k."""
