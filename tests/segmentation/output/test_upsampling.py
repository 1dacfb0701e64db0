import pytest
import torch

from nerve_kernels.segmentation.output import upsampling
from nerve_kernels.segmentation.output.upsampling import best_labels, upsample


def planes(labels: int = 7) -> torch.Tensor:
    return torch.randn(labels, 5, 4, generator=torch.Generator().manual_seed(2)).softmax(0)


def test_probabilities_stay_probabilities():
    up = upsample(planes(), (33, 29))
    torch.testing.assert_close(up.sum(0), torch.ones(33, 29))


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 33 * 29 * 3, 2**30])
def test_best_label_some_labels_at_a_time(monkeypatch, chunk_bytes):
    monkeypatch.setattr(upsampling, "CHUNK_BYTES", chunk_bytes)
    wanted = upsample(planes(), (33, 29)).argmax(0)
    assert torch.equal(best_labels(planes(), (33, 29)), wanted)


def test_improbable_pixels_become_background_or_unlabelled():
    up = upsample(planes(), (33, 29))
    weak = up.amax(0) < 0.4
    assert weak.any()
    assert not weak.all()
    unlabelled = best_labels(planes(), (33, 29), threshold=0.4)
    assert torch.equal(unlabelled == -1, weak)
    background = best_labels(planes(), (33, 29), threshold=0.4, background=2)
    assert torch.equal(background, torch.where(weak, 2, up.argmax(0)))
