"""``python -m nerve_kernels.evaluation`` is ``nerve-evaluate``, for ``torchrun -m``."""

from nerve_kernels.cli import evaluate

if __name__ == "__main__":
    evaluate()
