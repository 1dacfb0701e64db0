import pytest
import torch

from nerve_kernels.segmentation.output.upsampling import best_labels, upsample


def planes(labels: int = 7) -> torch.Tensor:
    return torch.randn(labels, 5, 4, generator=torch.Generator().manual_seed(2)).softmax(0)


def test_probabilities_stay_probabilities():
    up = upsample(planes(), (33, 29))
    torch.testing.assert_close(up.sum(0), torch.ones(33, 29))


@pytest.mark.parametrize("size", [(33, 29), (140, 150), (3, 2)])
@pytest.mark.parametrize("labels_side_by_side", [False, True])
def test_labels_are_the_best_of_the_upsampled_planes(size, labels_side_by_side):
    given = planes()
    if labels_side_by_side:  # as the walk leaves them
        given = given.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(best_labels(given, size), upsample(given, size).argmax(0))


def test_improbable_pixels_become_background_or_unlabelled():
    up = upsample(planes(), (33, 29))
    weak = up.amax(0) < 0.4
    assert weak.any()
    assert not weak.all()
    unlabelled = best_labels(planes(), (33, 29), threshold=0.4)
    assert torch.equal(unlabelled == -1, weak)
    background = best_labels(planes(), (33, 29), threshold=0.4, background=2)
    assert torch.equal(background, torch.where(weak, 2, up.argmax(0)))
