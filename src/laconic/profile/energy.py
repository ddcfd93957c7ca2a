"""Energy and a bound on the time: modelled from counts, not measured.

Energies are of a 45 nm process at 0.9 V (Horowitz 2014, "Computing's energy problem", ISSCC, figure 1.1.9; the 32-bit
memory reads as in Han et al. 2016, arXiv 1602.01528, table I). A MAC is a product and a sum; integers are summed in 32
bits. Every byte that an operator reads or writes passes the SRAM once, what is reused in registers is free: so this is
a lower bound, and a comparison of models rather than a prediction for a chip.

The bound on the time is the roofline's (Williams, Waterman and Patterson 2009, doi 10.1145/1498765.1498785): neither
the operations nor the DRAM traffic can be faster than the machine's peak and bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["f32", "f16", "int8"]

PRODUCT_PJ: dict[Precision, float] = {"f32": 3.7, "f16": 1.1, "int8": 0.2}
SUM_PJ: dict[Precision, float] = {"f32": 0.9, "f16": 0.4, "int8": 0.1}
"""The sum of an int8 MAC is of 32 bits; a sum of 8 bits would take 0.03 pJ."""
SRAM_PJ = 5.0 / 4
DRAM_PJ = 640.0 / 4
"""Per byte, of reads of 32 bits."""


@dataclass(frozen=True)
class Energy:
    """Picojoules by what they are spent on."""

    compute_pj: float = 0.0
    sram_pj: float = 0.0
    dram_pj: float = 0.0

    @property
    def total_pj(self) -> float:
        return self.compute_pj + self.sram_pj + self.dram_pj

    def __add__(self, other: Energy) -> Energy:
        return Energy(self.compute_pj + other.compute_pj, self.sram_pj + other.sram_pj, self.dram_pj + other.dram_pj)


def energy_of(macs: int, flops: int, traffic_bytes: int, dram_bytes: int, precision: Precision) -> Energy:
    """The energy of so many MACs and elementwise operations (each a sum), and so many bytes."""
    compute = macs * (PRODUCT_PJ[precision] + SUM_PJ[precision]) + flops * SUM_PJ[precision]
    return Energy(compute, traffic_bytes * SRAM_PJ, dram_bytes * DRAM_PJ)


def bound_ms(flops: float, dram_bytes: float, peak_flops: float, bandwidth: float) -> float:
    """At least so many milliseconds, on a machine of ``peak_flops`` per second and ``bandwidth`` bytes per second."""
    return max(flops / peak_flops, dram_bytes / bandwidth) * 1e3
