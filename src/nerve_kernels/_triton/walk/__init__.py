"""Kernels of the random walk and of its adjoint; ``walk_step`` is the one that both are made of."""
