"""Random bits that follow from a key and a place alone: plain torch, as csrc/cpu/random.hpp draws them.

So dropout needs no mask to be kept: a backward pass draws again what its forward pass drew, whatever the threads, the
instruction level and the kernel are.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from sparse_ops.native import Call

LOW = 0xFFFFFFFF  # of an integer's bits
KEYS = 1 << 63  # keys of dropout are whole numbers below it
_ALL = (1 << 64) - 1


def random_bits(place: Tensor, key: int) -> Tensor:
    """32 random bits for each place, in int64: Wellons' lowbias32 with the key in two halves."""
    bits = (place + (key & LOW)) & LOW
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & LOW
    bits = bits ^ (key >> 32)
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & LOW
    return bits ^ (bits >> 16)


def mixed(key: int) -> int:
    """64 bits in which every bit of the key has a say in both halves (the end of Steele's SplitMix64).

    `random_bits` of two keys that differ in their upper half alone are not independent: what one drops the other keeps.
    """
    key = (key + 0x9E3779B97F4A7C15) & _ALL
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _ALL
    return key ^ (key >> 31)


def threshold(probability: float) -> int:
    """What is dropped is where random bits are below it; 0 drops nothing, and is that of no other probability than 0.

    Raises ValueError outside [0, 1).
    """
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"dropout: expected a probability in [0, 1), found {probability}")
    return max(1, int(probability * 2**32)) if probability else 0


def kept(shape: tuple[int, ...], probability: float, key: int) -> Tensor:
    """What dropout multiplies an array of this shape by, float32: 0, or 1 / (1 - probability)."""
    drawn = random_bits(torch.arange(math.prod(shape)), mixed(key)) >= threshold(probability)
    return (drawn / (1.0 - probability)).to(torch.float32).view(shape)


class RandomKey(Call):
    """`RandomKey` of csrc/cpu/api.hpp."""

    _fields_ = (("low", ctypes.c_uint32), ("high", ctypes.c_uint32))

    @classmethod
    def of(cls, key: int) -> RandomKey:
        """A whole number's two halves."""
        return cls(low=key & LOW, high=key >> 32)


class Dropout(Call):
    """`Dropout` of csrc/cpu/api.hpp."""

    _fields_ = (("key", RandomKey), ("threshold", ctypes.c_uint32), ("scale", ctypes.c_float))

    @classmethod
    def of(cls, probability: float, key: int) -> Dropout:
        """Raises ValueError for a probability outside [0, 1)."""
        return cls(key=RandomKey.of(mixed(key)), threshold=threshold(probability), scale=1.0 / (1.0 - probability))
