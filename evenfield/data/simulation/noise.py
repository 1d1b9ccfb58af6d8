"""Random numbers by counter: a pure function of (key, stream, place), the same on every device.

A field must not depend on which other fields are drawn with it, and thousands are drawn at once. A
stateful generator gives one or the other; a hash of a counter gives both. The keys come from
`evenfield.seeds.derive`; the mixing is SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def _shifted(z: Int[Tensor, "n k"], bits: int) -> Int[Tensor, "n k"]:
    """Logical right shift (torch's own copies the sign)."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def bits(key: Int[Tensor, " n"], stream: int, count: int) -> Int[Tensor, "n {count}"]:
    """64 random bits for each key and each place 0..count-1 of a stream."""
    place = torch.arange(count, device=key.device) + ((stream << 40) + 1)
    z = key[:, None] + place * _GOLDEN
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def uniform(key: Int[Tensor, " n"], stream: int, count: int) -> Float[Tensor, "n {count}"]:
    """Uniform on [0, 1), 24 bits deep."""
    return _shifted(bits(key, stream, count), 40).float() / (1 << 24)


def normal(key: Int[Tensor, " n"], stream: int, count: int) -> Float[Tensor, "n {count}"]:
    """Nearly standard normal: the sum of four uniforms of 16 bits (so at most 3.47 away from 0)."""
    z = bits(key, stream, count)
    total = (z & 0xFFFF) + ((z >> 16) & 0xFFFF) + ((z >> 32) & 0xFFFF) + ((z >> 48) & 0xFFFF)
    return (total - 2 * 0xFFFF).float() * (math.sqrt(3.0) / (1 << 16))


def grain(key: Int[Tensor, " n"], stream: int, count: int) -> Float[Tensor, "n {count}"]:
    """As `normal`, for pixels: 32-bit arithmetic in place, the sum of four bytes (steps of 0.007).

    The mixing is Wellons' "lowbias32" between two halves of the key.
    """
    head = bits(key, stream, 2)
    low = (head[:, :1] >> 32).int()
    high = (head[:, 1:] >> 32).int()
    z = torch.arange(count, device=key.device, dtype=torch.int32) * -1640531535 + low
    part = torch.empty_like(z)
    for shift, factor in ((16, 0x7FEB352D), (15, -2073319797), (16, None)):
        torch.bitwise_right_shift(z, shift, out=part)
        part &= (1 << (32 - shift)) - 1
        z ^= part
        if factor is None:
            break
        z *= factor
        z += high
    torch.bitwise_right_shift(z, 8, out=part)
    part &= 0x00FF00FF
    z &= 0x00FF00FF
    z += part
    torch.bitwise_right_shift(z, 16, out=part)
    z &= 0xFFFF
    z += part
    return z.float().sub_(510).mul_(math.sqrt(3.0 / 65535))
