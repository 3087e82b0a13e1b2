"""RMSNorm with a SiLU gate, as in Mamba-2: :class:`~rmsnorm.torch.gated.spec.GatedSpec` says of what."""
