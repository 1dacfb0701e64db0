"""The pipeline on a GPU. A file of its own: `make gpu-check` runs it where diffusers is, which GPU images may lack."""

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed")

from nerve_kernels.segmentation import NervePipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU visible to torch"),
]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_gpu_agrees_with_the_cpu(diffusion_folder, clip_folder, pipeline, wide_image, dtype):
    """The noise is drawn on the CPU, so the same seed means the same image of noise."""
    on_gpu = NervePipeline.from_pretrained(
        diffusion=diffusion_folder, clip=clip_folder, device="cuda", dtype=dtype, config=pipeline.config
    )
    seen = on_gpu(wide_image, "cat, dog|puppy, grass").token_probabilities
    wanted = pipeline(wide_image, "cat, dog|puppy, grass").token_probabilities
    tolerance = 2e-2 if dtype is None else 1e-1
    torch.testing.assert_close(seen, wanted, atol=tolerance, rtol=tolerance)
