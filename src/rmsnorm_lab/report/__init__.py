"""``rmsnorm report``: everything recorded, as one HTML page."""
