"""The plain norms, with and without a residual: :class:`~rmsnorm.spec.NormSpec` says which."""
