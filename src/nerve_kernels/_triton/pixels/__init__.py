"""Kernels from tokens to pixels."""
