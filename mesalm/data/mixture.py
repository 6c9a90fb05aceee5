"""Which row comes next where sources are mixed by weight, and the order of the rows of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def epoch_order(seed: int, epoch: int, total: int, part: int = 0) -> np.ndarray:
    """Return the order of the ``total`` rows of a part in one epoch, int64 [total], from seed, epoch and part only."""
    # RandomState, not Generator: NumPy promises never to change its stream, so old runs can be resumed.
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, epoch] + [part] * (part > 0)
    return np.random.RandomState(words).permutation(total)


def picks(weights: Sequence[float], begin: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for the draws ``begin`` to ``begin + count``, the part each takes from and its number there, int64.

    Draw n goes to the part with the largest w_i / (2 c_i + 1), of weight w_i and c_i draws so far: the divisor method
    of Webster and Sainte-Lague, whose shares are the nearest to the weights after every draw. Draw k of part i is
    thus the one at time (k + 1/2) / w_i, so that nothing before ``begin`` has to be gone through.
    """
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    # At time t part i has had about t w_i draws, at most half a draw more or less.
    slack = len(shares)
    first = np.maximum(np.floor((begin - slack) * shares - 0.5), 0).astype(np.int64)
    last = np.ceil((begin + count + slack) * shares + 0.5).astype(np.int64)
    parts = np.repeat(np.arange(len(shares)), last - first)
    numbers = np.concatenate([np.arange(low, high) for low, high in zip(first, last, strict=True)])
    times = (numbers + 0.5) / shares[parts]
    chosen = np.lexsort((parts, times))[begin - int(first.sum()) :][:count]
    return parts[chosen], numbers[chosen]


class Mixture:
    """Rows of several parts that lie one behind the other, ``sizes`` rows each, drawn by ``weights`` without end.

    Each part is gone through in an order of its own, and in another in its next epoch.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float]) -> None:
        self.sizes = list(sizes)
        self.weights = list(weights)
        self._begins = np.cumsum(self.sizes) - self.sizes
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def rows(self, seed: int, begin: int, count: int) -> np.ndarray:
        """Return the places of the rows of draws ``begin`` to ``begin + count``, int64 [count]."""
        parts, numbers = picks(self.weights, begin, count)
        places = np.empty(count, dtype=np.int64)
        for part in np.unique(parts):
            mine = parts == part
            epochs, within = np.divmod(numbers[mine], self.sizes[part])
            orders = {epoch: self._order(seed, int(epoch), int(part)) for epoch in np.unique(epochs)}
            drawn = [orders[epoch][row] for epoch, row in zip(epochs, within, strict=True)]
            places[mine] = self._begins[part] + np.array(drawn, dtype=np.int64)
        return places

    def _order(self, seed: int, epoch: int, part: int) -> np.ndarray:
        if (part, epoch) not in self._orders:
            # Two of a part are enough: draws leave one epoch for the next and do not come back.
            for old in sorted(key for key in self._orders if key[0] == part)[:-1]:
                del self._orders[old]
            self._orders[part, epoch] = epoch_order(seed, epoch, self.sizes[part], part)
        return self._orders[part, epoch]
