"""From the bytes of decimal numbers to numbers, many at once, each exactly what `float` makes of its text.

Eight digits that lie together are one 64-bit word, of which three multiplications make their number. This room knows
neither rows nor what a number means.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Words = np.ndarray[Any, np.dtype[np.uint64]]
Places = np.ndarray[Any, np.dtype[np.int64]]
Reals = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

PADDING = 24
"""Bytes that must lie before the first number, whatever they are: words are read backwards from a number's end."""

_MOST_DIGITS = 19
_KEPT = np.array([0] + [(1 << 64) - (1 << 64 - 8 * count) for count in range(1, 9)], np.uint64)
_TENS = np.array([10**power for power in range(_MOST_DIGITS + 1)], np.uint64)
_REAL_TENS = _TENS.astype(np.float64)


def decimals(data: Bytes, starts: Places, dots: Places, ends: Places) -> Reals | None:
    """Return the number in `data[start:end]` for each start and end, as float64.

    Each is the number that `float` makes of the text, or differs from it so little that both are the same float32.
    Whatever `float` reads is read; None means that a text is no number.

    Args:
        data: Text, with `PADDING` bytes before the first number.
        starts: Where each number begins.
        dots: Where its decimal point is; its end if it has none.
        ends: Where it ends.
    """
    first = data[starts]
    is_negative = first == 45
    whole_digits = dots - starts - (is_negative | (first == 43))
    parts = np.maximum(ends - dots - 1, 0)
    total = whole_digits + parts
    is_plain = (whole_digits >= 0) & (total > 0) & (total <= _MOST_DIGITS)
    whole_digits, parts = np.where(is_plain, whole_digits, 0), np.where(is_plain, parts, 0)
    whole, whole_fits = digits(data, dots, whole_digits)
    fraction, fraction_fits = digits(data, ends, parts)
    is_plain &= whole_fits & fraction_fits
    mantissa = whole * _TENS[parts] + fraction
    values: Reals = mantissa.astype(np.float64) / _REAL_TENS[parts]
    np.negative(values, out=values, where=is_negative)
    # Below 2**53 both operands are exact, and so is the division. Above, the float32 is another one only if the
    # number lies next to the middle of two.
    rest = values.view(np.uint64) & np.uint64((1 << 29) - 1)
    is_near = (mantissa >= np.uint64(1 << 53)) & (rest - np.uint64((1 << 28) - 8) <= np.uint64(16))
    return _with_others(data, starts, ends, values, np.flatnonzero(~is_plain | is_near))


def digits(data: Bytes, ends: Places, counts: Places) -> tuple[Words, Flags]:
    """Return the numbers whose digits, `counts` of them, lie before `ends`, and whether they are digits.

    Args:
        data: Text, with `PADDING` bytes before the first number.
        ends: Where each number ends.
        counts: How many digits it has, at most 19.
    """
    words = np.ndarray((len(data) - 7,), np.uint64, buffer=data, strides=(1,))
    value = np.zeros(len(ends), np.uint64)
    fits = np.ones(len(ends), np.bool_)
    for place in range(0, int(counts.max(initial=0)), 8):
        word = words[ends - (place + 8)] ^ np.uint64(0x3030303030303030)
        word &= _KEPT[np.clip(counts - place, 0, 8)]
        fits &= ((word + np.uint64(0x7676767676767676) | word) & np.uint64(0x8080808080808080)) == 0
        word = word * np.uint64(2561) >> np.uint64(8)
        word = (word & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(6553601) >> np.uint64(16)
        word = (word & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(42949672960001) >> np.uint64(32)
        value += word * _TENS[place]
    return value, fits


def _with_others(data: Bytes, starts: Places, ends: Places, values: Reals, others: Places) -> Reals | None:
    """Put into `values` what Python makes of the texts `others`, such as 1e-05; None if one is no number."""
    for place in others.tolist():
        text = data[starts[place] : ends[place]].tobytes()
        try:
            values[place] = float(text)
        except ValueError:
            return None
        if b"_" in text:
            return None
    return values
