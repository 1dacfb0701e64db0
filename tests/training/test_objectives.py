"""The losses, by hand; checkpoints and averages."""

import math

import pytest
import torch
from training.models.checkpoints import AveragedWeights, Clock, load_state, save_state
from training.models.train_clip import multi_positive_loss, patch_loss


def test_multi_positive_loss_is_cross_entropy_for_one_positive():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([1, 0, 6, 3])
    positive = torch.nn.functional.one_hot(wanted, 7).float()
    torch.testing.assert_close(multi_positive_loss(logits, positive), torch.nn.functional.cross_entropy(logits, wanted))


def test_multi_positive_loss_of_equal_captions_is_the_logarithm_of_their_number():
    logits = torch.tensor([[50.0, 50.0, -50.0]])
    loss = multi_positive_loss(logits, torch.tensor([[1.0, 1.0, 0.0]]))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)


def test_texts_that_hold_for_no_picture_do_not_count():
    logits = torch.tensor([[1.0, 2.0], [5.0, -5.0]])
    with_empty = multi_positive_loss(logits, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(with_empty, multi_positive_loss(logits[:1], torch.tensor([[0.0, 1.0]])))


def test_patches_that_share_out_the_caption_have_no_loss():
    # Four patches, three words; the first two hold, and two patches claim each.
    logits = torch.full((1, 4, 3), -40.0)
    logits[0, :2, 0] = logits[0, 2:, 1] = 40.0
    holds = torch.tensor([[True, True, False]])
    assert patch_loss(logits, holds, claimed=2).item() == pytest.approx(0, abs=1e-5)
    # A word of the caption that no patch claims costs, and so do patches that leave the caption.
    assert patch_loss(logits, torch.tensor([[True, True, True]]), claimed=2) > 10
    assert patch_loss(logits, torch.tensor([[True, False, False]]), claimed=2) > 10


def test_state_survives_and_is_replaced_whole(tmp_path):
    path = tmp_path / "run" / "state.pt"
    assert load_state(path) is None
    save_state(path, {"step": 1, "weights": {"a": torch.ones(2)}})
    save_state(path, {"step": 2, "weights": {"a": torch.zeros(2)}})
    state = load_state(path)
    assert state is not None
    assert state["step"] == 2
    assert not state["weights"]["a"].any()
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_average_follows_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    average = AveragedWeights(model, decay=0.5)
    start = average.values["weight"].item()
    with torch.no_grad():
        model.weight.fill_(start + 1)
    for step in range(100):
        average.update(model, step)
    assert average.values["weight"].item() == pytest.approx(start + 1, abs=1e-4)


def test_clock_goes_on_from_what_was_spent():
    clock = Clock(budget_minutes=2, spent_seconds=90)
    assert 0.75 <= clock.progress < 0.8
