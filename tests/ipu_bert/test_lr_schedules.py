"""Learning-rate schedules by hand, alone and after a warm-up."""

from __future__ import annotations

import pytest
import torch

from ipu_bert.lr_schedules import LR_SCHEDULES, constant, linear, with_warmup


@pytest.mark.parametrize(("name", "expected"), [("linear", [1.0, 0.75, 0.5, 0.0]), ("constant", [1.0] * 4)])
def test_schedules_by_hand(name, expected):
    assert [LR_SCHEDULES[name](left) for left in (1.0, 0.75, 0.5, 0.0)] == expected


@pytest.mark.parametrize(
    ("schedule", "steps", "warmup", "expected"),
    [
        (linear, 10, 4, [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0]),
        (linear, 3, 0, [1, 2 / 3, 1 / 3, 0]),
        (linear, 2, 2, [1 / 2, 1, 0]),
        (constant, 3, 2, [1 / 2, 1, 1, 1, 1]),
        (constant, 2, 0, [1, 1, 1]),
        (lambda left: left**2, 6, 2, [1 / 2, 1, 1, 9 / 16, 4 / 16, 1 / 16, 0]),
    ],
)
def test_after_a_warmup_by_hand(schedule, steps, warmup, expected):
    factor = with_warmup(schedule, steps, warmup)
    assert [factor(done) for done in range(len(expected))] == pytest.approx(expected)


def test_through_lambda_lr():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, with_warmup(linear, 4, 2))
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([1e-4, 2e-4, 2e-4, 1e-4])


@pytest.mark.parametrize("warmup", [-1, 11])
def test_a_warmup_outside_the_run_is_refused(warmup):
    with pytest.raises(ValueError, match=f"warmup_steps: expected 0 to 10, .* found {warmup}"):
        with_warmup(linear, 10, warmup)
