"""No change to the C++ kernels changes a result unnoticed: their outputs have the digests that were recorded."""

from __future__ import annotations

import json

import pytest
import torch
from tests.ops.output_digests import CAPABILITIES, RECORD, compiler, differences, digest, in_process, supported, ulps

from nerve_kernels import _native

pytestmark = pytest.mark.skipif(not _native.extension_loaded(), reason=f"no extension: {_native.load_error()}")


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_outputs_are_the_recorded_ones(capability: str) -> None:
    record = json.loads(RECORD.read_text())
    if compiler() != record["compiler"]:
        pytest.skip(f"recorded with {record['compiler']}, this build is by {compiler() or 'an unknown compiler'}")
    if capability not in record:
        pytest.skip(f"no outputs are recorded for {capability}")
    if capability not in supported():
        pytest.skip(f"this processor has no {capability}")
    assert list(differences(record[capability], in_process(capability))) == [], (
        "outputs changed; if that is meant, measure by how much (python -m tests.ops.output_digests --against) and "
        "record them anew (--write)"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_digest_and_a_distance_see_one_unit_in_the_last_place(dtype: torch.dtype) -> None:
    ones = torch.ones(3, dtype=dtype)
    changed = ones.clone()
    changed[1] -= torch.finfo(dtype).eps / 2
    assert ulps(ones, changed) == 1
    assert digest([ones]) != digest([changed])
    assert list(differences({"x": digest([ones]), "y": ""}, {"x": [changed]})) == ["x", "y"]
    assert ulps(torch.tensor([0.0, float("nan")], dtype=dtype), torch.tensor([-0.0, float("nan")], dtype=dtype)) == 0
