"""An opened file as a :data:`~laconic.core.Predictor`: names, chunks and padding, the same for every runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from laconic.core import Array, Arrays


class Session:
    """Runs any number of samples through a file, ``batch`` at a time; the last chunk is padded with its last sample.

    ``run`` takes arrays by name and gives the outputs in order. A call with exactly ``batch`` samples goes straight
    through: it is what latency is timed on.
    """

    def __init__(
        self,
        run: Callable[[Arrays], Sequence[Array]],
        input_names: Sequence[str],
        output_names: Sequence[str],
        batch: int,
    ) -> None:
        self._run = run
        self.input_names = tuple(input_names)
        self.output_names = tuple(output_names)
        self.batch = batch

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        if len(self.input_names) == 1:  # one input goes by position
            inputs = {self.input_names[0]: next(iter(inputs.values()))}
        n = len(inputs[self.input_names[0]])
        if n == self.batch:
            return dict(zip(self.output_names, self._run(inputs), strict=True))
        chunks = []
        for start in range(0, n, self.batch):
            chunk = {name: x[start : start + self.batch] for name, x in inputs.items()}
            chunks.append(self._run({name: _padded(x, self.batch) for name, x in chunk.items()}))
        columns = zip(*chunks, strict=True)
        return {name: np.concatenate(c)[:n] for name, c in zip(self.output_names, columns, strict=True)}


def _padded(x: Array, batch: int) -> Array:
    missing = batch - len(x)
    return np.ascontiguousarray(x if not missing else np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]))
