"""The Triton kernels for CUDA and ROCm tensors. Importing this package imports Triton.

On the host:
    functions          what :mod:`rmsnorm.torch` calls, under the names of the C++ kernels
    norms, gated, quantized    each operation's plan: its checks, and the kernels that it launches
    plans              a call's plan, made once for tensors that look alike; arguments checked in one place
    layout             where rows lie in memory
    choices            how a kernel is launched, from a row's length and dtype
    launch             a kernel compiled for a device, and launched

On the device:
    rows, pieces       how whole rows, and pieces of long rows, are read and written
    statistic          1/RMS or mean and 1/σ, and the gradient's projection
    forward_kernels, parts_kernels, backward_kernels, long_backward_kernels, gated_kernels, quantized_kernels
"""
