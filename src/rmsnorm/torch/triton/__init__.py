"""The Triton kernels for CUDA and ROCm tensors; :mod:`~rmsnorm.torch.triton.functions` is what calls them.

Importing this package imports Triton: :mod:`rmsnorm.torch.dispatch` does so at the first call with such a tensor.
"""
