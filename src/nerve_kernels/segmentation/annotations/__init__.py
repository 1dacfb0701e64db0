"""Masks in the formats of annotation tools; the libraries come with ``pip install "nerve_kernels[formats]"``."""
