"""Rounding to half, and products with half partial sums: native kernels, plain torch, and numbers worked out here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_ops import native
from sparse_ops.half import PARTIAL_WIDTH, Products, dense, round_in_place, round_to_half

KEY = 0x123456789ABCDEF


def numbers(seed: int) -> Tensor:
    """Float32 of every size that a half can or cannot have, both signs."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp2(torch.rand(20001, generator=generator) * 50 - 30)
    special = torch.tensor([0.0, 2.0**-14, 2.0**-24, 2.0**-25, 65504.0, 65519.9, 65520.0, 1e9, float("inf")])
    x = torch.cat([size, special, size.half().float()])
    return torch.cat([x, -x, torch.tensor([float("nan")])])


def test_to_nearest_is_what_torch_makes(level: str, seed: int) -> None:
    x = numbers(seed)
    expected = x.half().float()
    found = round_to_half(x, None, 0)
    assert torch.equal(found.view(torch.int32)[:-1], expected.view(torch.int32)[:-1])
    assert torch.isnan(found[-1])


def test_stochastic_rounding_goes_to_a_neighbour_with_the_right_probability(level: str, seed: int) -> None:
    x = numbers(seed)
    rounded = round_to_half(x, KEY + seed, 0)
    finite = rounded.isfinite() & (x.abs() < 65504)
    step = torch.exp2(x.abs().clamp(min=2.0**-14).log2().floor() - 10)[finite]
    assert bool(((rounded - x).abs()[finite] < step).all()), "further than the next half"
    exact = finite & (x.half().float() == x)
    assert torch.equal(rounded[exact], x[exact]), "what is a half already stays"
    for value in (1.25, 3.7 * 2.0**-20, -1.5 * 2.0**-24, 1000.3):
        many = torch.full((40000,), value)
        mean = round_to_half(many, KEY - seed, 0).double().mean().item()
        size = 2.0 ** max(-24, torch.tensor(abs(value)).log2().floor().item() - 10)
        # A draw is off by at most a step, so the mean by 5 * step / 2 / sqrt(40000); the draw has 13 bits.
        assert abs(mean - many[0].item()) < size * (5 / 2 / 200 + 2.0**-13), value


def test_random_bits_follow_from_key_and_place_alone(level: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(70000, generator=torch.Generator().manual_seed(seed))
    whole = round_to_half(x, KEY, 0)
    assert torch.equal(whole[1237:], round_to_half(x[1237:], KEY, 1237))
    up, other, shifted = (
        (round_to_half(torch.full((70000,), 1.0 + 2.0**-11), key, place) > 1).double() - 0.5
        for key, place in ((KEY, 0), (KEY + 1, 0), (KEY, 1))
    )
    for a, b in ((up, other), (up, shifted), (up[1:], up[:-1]), (up[:-8], up[8:]), (up[:-256], up[256:])):
        assert abs((a * b).mean().item()) < 0.25 * 5 / 70000**0.5, "draws go together"
    monkeypatch.setattr(native, "available", lambda: False)
    assert torch.equal(whole, round_to_half(x, KEY, 0))


def whole_numbers(generator: torch.Generator, *shape: int) -> Tensor:
    """Small enough for every sum to be exact in float32, in whatever order; large enough to be rounded in half."""
    return torch.randint(-60, 61, shape, generator=generator).float()


def by_hand(a: Tensor, b: Tensor, key: int | None) -> Tensor:
    """One matrix product, its running sum rounded every 16 terms."""
    total = torch.zeros(a.shape[0], b.shape[1])
    for i in range(0, a.shape[1], PARTIAL_WIDTH):
        if i:
            total = round_to_half(total, key, i // PARTIAL_WIDTH * total.numel())
        total += a[:, i : i + PARTIAL_WIDTH] @ b[i : i + PARTIAL_WIDTH]
    return total


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(("rows", "terms", "columns"), [(5, 70, 37), (4, 16, 16), (1, 15, 1), (9, 33, 8), (3, 160, 64)])
def test_dense_products_round_every_16_terms(
    rows: int, terms: int, columns: int, key: int | None, level: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = whole_numbers(generator, 1, rows, terms), whole_numbers(generator, 1, terms, columns)
    found = dense(a, b, key, rounded=True)[0]
    assert torch.equal(found, by_hand(a[0], b[0], key))
    assert torch.equal(dense(a, b, key, rounded=False)[0].double(), a[0].double() @ b[0].double())
    lying = a.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(dense(lying, b, key, rounded=True)[0], found), "a transposed factor is the same factor"
    assert terms < 70 or not torch.equal(found.double(), a[0].double() @ b[0].double()), "nothing was rounded"


@pytest.mark.parametrize("threads", [1, 2])
def test_every_job_has_its_own_terms(level: str, threads: int, seed: int) -> None:
    """Jobs of 0 to 50 terms anywhere in a and b; beside them lies what would show."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([50, 0, 17, 1, 16, 32])
    a, b = whole_numbers(generator, 400), torch.full((3000,), float("nan"))
    a_step = torch.randint(0, 100, (int(counts.sum()),), generator=generator)
    b_step = torch.randint(0, 120, (int(counts.sum()),), generator=generator) * 20
    b.view(-1, 20)[:, :19] = whole_numbers(generator, 150, 19)
    a_base, b_base = torch.arange(6) * 10, torch.arange(6) * 40
    jobs = Products(a_base, b_base, counts.cumsum(0) - counts, counts, a_step, b_step, 3, 19, 80)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found = jobs.of(a, b, None, rounded=True)
    torch.set_num_threads(before)
    for j, (first, count) in enumerate(zip(jobs.first.tolist(), counts.tolist())):
        steps = slice(first, first + count)
        left = torch.stack([a[a_base[j] + m * 80 + a_step[steps]] for m in range(3)])
        right = b[(b_base[j] + b_step[steps])[:, None] + torch.arange(19)]
        assert torch.equal(found[j], by_hand(left, right, None)), j


def test_a_batch_is_every_product_of_it(level: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(7, 12, 40, generator=generator), torch.randn(7, 40, 21, generator=generator)
    # 40 products of size at most 6 each, added up in float32.
    torch.testing.assert_close(
        dense(a, b, None, rounded=False).double(), a.double() @ b.double(), rtol=0, atol=40 * 2.0**-24 * 6 * 40**0.5
    )
    found = dense(a.half(), b.half(), KEY, rounded=True)
    again = dense(a.half(), b.half(), KEY, rounded=True)
    assert torch.equal(found, again)
    # Two roundings, each by less than a step of a sum below 64.
    torch.testing.assert_close(found.double(), a.half().double() @ b.half().double(), rtol=0, atol=2 * 2.0**-5)


@pytest.mark.parametrize("key", [None, KEY])
def test_rounding_in_place_gives_the_same_bits(level: str, seed: int, key: int | None) -> None:
    x = torch.randn(37, 53, generator=torch.Generator().manual_seed(seed))
    for given in (x.clone(), x.t()):
        expected = round_to_half(given, key, 0)
        assert torch.equal(round_in_place(given, key), expected)


def test_what_torch_has_not_written_out_is(level: str, seed: int) -> None:
    """A view that is negated when it is read, and zeros without memory, which ended the process."""
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
    for lazy, plain in ((torch._neg_view(x), -x), (torch._efficientzerotensor((3, 16)), torch.zeros(3, 16))):
        expected = plain.half().float()
        assert torch.equal(round_to_half(lazy, None, 0), expected)
        assert torch.equal(round_in_place(lazy, None), expected)
        assert torch.equal(dense(lazy[None], x.t()[None], None, True), dense(plain[None], x.t()[None], None, True))


@pytest.mark.parametrize("given", [torch.ones(2, 3, 4).double(), torch.ones(2, 3, 4, device="meta")])
def test_what_is_not_float32_on_the_cpu_is_refused(given: Tensor, level: str) -> None:
    """Bytes of float64 were rounded as if they were float32, and the meta device's ended the process."""
    a_product = Products(*(torch.zeros(1, dtype=torch.int64) for _ in range(6)), 1, 1, 1)
    for act in (
        lambda: round_to_half(given, None, 0),
        lambda: round_in_place(given, KEY),
        lambda: a_product.of(given, torch.ones(1), None, rounded=False),
        lambda: a_product.of(torch.ones(1), given, None, rounded=False),
    ):
        with pytest.raises(ValueError, match=r"half: expected float32 on the CPU, found torch\.float"):
            act()


def test_shapes_that_do_not_multiply_are_refused(level: str) -> None:
    for b in (torch.ones(2, 5, 6), torch.ones(1, 4, 6), torch.ones(4, 6)):
        with pytest.raises(ValueError, match=r"half: expected \[N, R, T\] times \[N, T, C\], found \[2, 3, 4\] times"):
            dense(torch.ones(2, 3, 4), b, None, rounded=True)
