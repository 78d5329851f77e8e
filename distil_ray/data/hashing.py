"""Counter-based random numbers: a draw is a pure function of its key, so it does not depend on who makes it.

The mixing function is splitmix64's finalizer (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014). Everything is NumPy uint64 arithmetic, which wraps around modulo 2**64.
"""

import hashlib

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def mix(x: UInt64Array) -> UInt64Array:
    """Return a new array of the same shape whose bits are well mixed (a bijection on 64-bit words)."""
    z = x + _GOLDEN_GAMMA
    z ^= z >> np.uint64(30)
    z *= _MULTIPLIER_1
    z ^= z >> np.uint64(27)
    z *= _MULTIPLIER_2
    z ^= z >> np.uint64(31)
    return z


def stream_key(*parts: int | str) -> np.uint64:
    """Return the 64-bit key of a named stream of draws, e.g. ``stream_key(seed, "mask", group)``."""
    name = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))


def draws(key: np.uint64 | UInt64Array, counters: UInt64Array) -> UInt64Array:
    """Return the stream's uniform 64-bit draws at ``counters`` (``key`` and ``counters`` broadcast)."""
    return mix(mix(np.atleast_1d(counters)) ^ key)


def to_unit_interval(words: UInt64Array) -> npt.NDArray[np.float64]:
    """Map 64-bit words to float64 in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
