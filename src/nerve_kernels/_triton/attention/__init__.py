"""Kernels on q and k, or on explicit attention maps: one file per operation."""
