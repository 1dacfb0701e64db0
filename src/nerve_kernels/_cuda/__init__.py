"""The persistent CUDA C++ kernels of csrc/cuda/: what fits on a GPU, and how they are called."""
