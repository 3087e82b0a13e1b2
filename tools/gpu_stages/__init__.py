"""The stages of tools/gpu_session.py, one module each. A stage is a list of items, and each item writes one line."""
