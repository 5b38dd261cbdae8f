"""Rounding of the simulated FP16.16 against float64 worked out here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ipu_bert.engines.simulator.arithmetic import HalfArithmetic, Rounding

EPS = 2.0**-11  # half an ulp of a half at 1


def test_product_rounds_running_sum_every_16() -> None:
    # 2048 + 1 is not a half: each partial sum of 16 ones (= 16) survives, sixteen ones one by one would not.
    a = torch.ones(1, 64, dtype=torch.float16)
    b = torch.ones(64, 1, dtype=torch.float16)
    b[0] = 2048.0
    with HalfArithmetic(Rounding(), half_partials=True, recorder=None):
        half = a @ b
    assert half.dtype == torch.float16
    # 2048 + 15 -> 2064 (ties to even of 2063 in steps of 2), then 2080, 2096, 2112
    assert half.item() == 2112.0
    tiny = torch.full((64, 1), 0.0, dtype=torch.float16)
    tiny[0], tiny[16], tiny[32], tiny[48] = 2048.0, 1.0, 1.0, 1.0
    with HalfArithmetic(Rounding(), half_partials=True, recorder=None):
        lost = a @ tiny
    with HalfArithmetic(Rounding(), half_partials=False, recorder=None):
        kept = a @ tiny
    assert lost.item() == 2048.0, "a half partial sum loses 1 beside 2048 each time"
    assert kept.item() == 2052.0, "a float partial sum keeps 2051, rounded once to 2052"


def test_forward_and_backward_of_a_network_stay_near_float64(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 8))
    for p in network.parameters():
        p.data.normal_(generator=generator).mul_(0.3)
    x = torch.randn(4, 48, generator=generator)
    half, exact = network.half(), None
    weights = [p.detach().double().requires_grad_() for p in half.parameters()]
    out = F.gelu(F.linear(x.half().double(), *weights[:2]))
    exact = F.log_softmax(F.linear(F.layer_norm(out, (32,), *weights[2:4]), *weights[4:]), -1)
    expected = torch.autograd.grad(exact.square().sum(), weights)
    with HalfArithmetic(Rounding(), half_partials=True, recorder=None):
        result = F.log_softmax(half(x.half()), -1)
        result.square().sum().backward()
    assert result.dtype == torch.float16
    torch.testing.assert_close(result.double(), exact.detach(), rtol=30 * EPS, atol=30 * EPS)
    for p, g in zip(half.parameters(), expected):
        assert p.grad is not None
        assert p.grad.dtype == torch.float16
        torch.testing.assert_close(p.grad.double(), g, rtol=0.05, atol=0.05 * float(g.abs().max()))


def test_stochastic_rounding_is_unbiased_and_hits_only_neighbours(seed: int) -> None:
    rounding = Rounding(stochastic_seed=seed)
    x = torch.full((40000,), 1.0 + 0.25 * 2.0**-10)
    rounded = rounding(x).float()
    assert set(rounded.tolist()) == {1.0, 1.0 + 2.0**-10}
    share = (rounded > 1.0).float().mean().item()
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 40000) ** 0.5
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(seed)).half()
    assert torch.equal(rounding(exact.float()), exact), "what is a half already stays"
    subnormal = torch.full((1000,), 1.5 * 2.0**-24)
    assert set(rounding(subnormal).float().tolist()) == {2.0**-24, 2.0**-23}
    special = rounding(torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, 1e9]))
    assert special.tolist()[:2] == [float("inf"), float("-inf")]
    assert torch.isnan(special[2])
    assert special[3:].tolist() == [0.0, float("inf")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_types_are_left_alone(seed: int, dtype: torch.dtype) -> None:
    a = torch.randn(5, 40, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    with HalfArithmetic(Rounding(), half_partials=True, recorder=None):
        product = a @ a.t()
    torch.testing.assert_close(product, a @ a.t(), rtol=0, atol=0)


def test_state_brings_the_same_random_bits_back(seed: int) -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed))
    rounding, other = Rounding(stochastic_seed=seed), Rounding(stochastic_seed=seed + 1)
    first = rounding(x)
    state = rounding.state
    second = rounding(x)
    assert not torch.equal(first, second), "each rounding has bits of its own"
    other.state = state
    assert torch.equal(other(x), second)
    older = torch.Generator().manual_seed(seed).get_state().tolist()
    other.state = rounding.state = older
    assert torch.equal(other(x), rounding(x)), "a checkpoint of version 0.1 goes on, the same way every time"
    assert Rounding().state == []
