"""``python -m nerve_kernels.cli`` is ``nerve-segment``."""

from . import main

if __name__ == "__main__":
    main()
