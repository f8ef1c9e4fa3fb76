"""Named, host-side, counter-based random streams: the only place where minipc makes randomness.

Streams share no state, so a draw added to one purpose cannot shift another and the order of
execution does not matter.  Nothing here touches NumPy's global generator or a device generator.
"""

import zlib

import numpy as np

from minipc.errors import UsageError
from minipc.settings import TrainConfig, settings_of

_SEED = settings_of(TrainConfig)["seed"]  # its bounds


def check_seed(seed: int) -> None:
    """Raise UsageError unless seed is an integer in [0, 2^64), the key width of Philox4x64."""
    _SEED.check(seed)


def stream(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Return a numpy Generator for one purpose, e.g. stream(0, "shuffle", epoch).

    seed as in check_seed, key integers in [0, 2^32).  The key enters as a spawn key, which
    SeedSequence never pads: (1,) and (1, 0) are two streams.  Raises UsageError.
    """
    check_seed(seed)
    if not all(0 <= number < 2**32 for number in key):
        raise UsageError(f"stream {purpose}: expected keys from 0 to 2^32 - 1, got {key}")
    label = zlib.crc32(purpose.encode())  # hash() is salted per process
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence(seed, spawn_key=(label, *key)))
    )


def view_words(seed: int, view: int, first: int, clouds: int) -> np.ndarray:
    """Return the raw Philox4x64-10 words of clouds first .. first + clouds - 1 of one view.

    -> (clouds, 6) uint64.  Each cloud owns two counter blocks of four words; words 6 and 7 are
    unused.  NumPy keeps this raw stream the same in every version; it does not promise this for its
    distributions.  Key and counter are uint64 arrays, because a list would pass through float64.
    """
    check_seed(seed)
    bits = np.random.Philox(
        key=np.array([seed, view], np.uint64),
        counter=np.array([2 * first, 0, 0, 0], np.uint64),
    )
    return bits.random_raw(8 * clouds).reshape(clouds, 8)[:, :6]
