"""Fused Triton kernels for CUDA and ROCm GPUs: one file per operation, imported when an operation first runs on them.

``availability`` alone is imported with the package, and it does not import triton.
"""
