"""What the paper proves and observes, measured: invariances (Table 1) and gradients under re-scaling (§4.2)."""
