"""Every operation of the registry on a GPU, by every backend and in every precision, against its float64 definition."""

from __future__ import annotations

import pytest
import torch
from benchmarks.measure import TOLERANCES, relative_error
from benchmarks.operations import sizes
from benchmarks.operations.catalog import OPERATIONS
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Operation

import nerve_kernels as nk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU visible to torch"),
]

OPERATIONS_AND_BACKENDS = [
    (operation, backend)
    for operation in OPERATIONS
    for backend in ("cuda", "triton", "eager")
    if backend in operation.backends
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("operation", "backend"), OPERATIONS_AND_BACKENDS, ids=lambda v: getattr(v, "name", v))
def test_backend_agrees_with_the_definition(operation: Operation, backend: str, dtype: torch.dtype) -> None:
    problem = Problem(sizes.SMALL, dtype=dtype, device="cuda")
    try:
        result = operation.ours(problem, None if operation.backends == ("eager",) else backend)()
    except nk.BackendUnavailableError as error:
        pytest.skip(str(error))
    error = relative_error(result, operation.reference(problem))
    assert error <= max(operation.tolerance, TOLERANCES[dtype])
