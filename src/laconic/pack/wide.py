"""x"""

from __future__ import annotations

import numpy as np

from laconic.pack.arithmetic import Coder, Ints, Model, code_bits, compiled, decide, decide_alone, new_model
from laconic.pack.integers import Around

import os
NIN=int(os.environ.get("NIN","6")); SIGNS=int(os.environ.get("SIGNS","1")); D1=int(os.environ.get("D1","2")); D2=int(os.environ.get("D2","1"))
_NODES = 64  # decisions that are told apart
_SIZES, _LEVELS, _PLACES = 12, 36, 32
_ROW = 0
_COLUMN = _ROW + _LEVELS * _NODES
_NEAR = _COLUMN + _LEVELS * _NODES
_LEFT = _NEAR + _LEVELS * _NODES
_ABOVE = _LEFT + _SIZES * _SIZES * _NODES
_PLACE = _ABOVE + _SIZES * _SIZES * _NODES
_SIGNS = _PLACE + _PLACES * _NODES
_BOTH= _SIGNS + 27 * _PLACES
_SLOTS = _BOTH+ _LEVELS*_LEVELS*_NODES
_FIRST, _SECOND, _LONG = 8, 16, 48


def new_wide() -> Model:
    return new_model(_SLOTS, _NODES)


@compiled
def code_wide(values: Ints, shape: Ints, around: Around, model: Model, coder: Coder) -> int:
    rows, columns, kernel, top = shape[0], shape[1], shape[2], shape[3]
    means, sizes, levels = around.means, around.sizes, around.levels
    at = model.at
    mean, near = 128, 128  # magnitudes in 1/256: of the row before, of the last few weights
    for c in range(columns):
        means[c] = 128
    for r in range(rows):
        total, count = 4 * mean, 4
        place = 0
        for c in range(columns):
            i = r * columns + c
            left = values[i - 1] if c > 0 else 0
            before = values[i - 2] if c > 1 else 0
            above = values[i - columns] if r > 0 else 0
            beside = values[i - kernel] if c >= kernel else 0
            row, column = levels[min(total // count, 65535)], levels[means[c]]
            at[0] = _ROW + row * _NODES
            at[1] = _COLUMN + column * _NODES
            at[2] = _NEAR + levels[near] * _NODES
            at[3] = _LEFT + (sizes[abs(left)] * _SIZES + sizes[abs(before)]) * _NODES
            at[4] = _ABOVE + (sizes[abs(above)] * _SIZES + sizes[abs(beside)]) * _NODES
            at[5] = _PLACE + min(place, _PLACES - 1) * _NODES
            at[6] = _BOTH + (row*_LEVELS+column) * _NODES
            value = values[i]
            size = abs(value)
            length = 0
            while length < 7 and (size >> length) > 0:
                length += 1
            seen = 1
            for k in range(3):
                seen = 2 * seen + decide((length >> (2 - k)) & 1, NIN, seen, seen, model, coder)
            length = seen - 8
            value = 0
            if length > 0:
                rest = length - 1
                value = 1
                if length == 7 and top > 127:
                    rest += decide_alone(1 if size > 127 else 0, _LONG, model, coder)
                if rest > 0:
                    rest -= 1
                    if D1==1:
                        value = 2 * value + decide_alone((size >> rest) & 1, at[0]+_FIRST + length, model, coder)
                    else:
                        value = 2 * value + decide((size >> rest) & 1, D1, _FIRST + length, _FIRST + length, model, coder)
                if rest > 0 and D2:
                    rest -= 1
                    value = 2 * value + decide_alone((size >> rest) & 1, at[0]+_SECOND + 2 * length + (value & 1), model, coder)
                if rest > 0:
                    value = (value << rest) + code_bits(size & ((1 << rest) - 1), rest, coder)
                if SIGNS:
                    signs = (_sign(left) * 3 + _sign(above)) * 3 + _sign(beside)
                    negative = decide_alone(1 if values[i] < 0 else 0, _SIGNS + signs * _PLACES + min(place, _PLACES - 1), model, coder)
                else:
                    negative = code_bits(1 if values[i]<0 else 0,1,coder)
                value = -value if negative == 1 else value
            values[i] = value
            size = abs(value) << 8
            total += size
            count += 1
            near = min(near + ((size - near) >> 3), 65535)
            means[c] = min(means[c] + ((size - means[c]) >> 3), 65535)
            place = place + 1 if place + 1 < kernel else 0
        mean = total // count
    return 0

@compiled
def _sign(value: int) -> int:
    return 1 if value > 0 else (2 if value < 0 else 0)
