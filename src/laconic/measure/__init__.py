"""Measuring a predictor: its records on a split, its latency beside another's. Knows no model and no torch."""

from laconic.measure.accuracy import chunks, records
from laconic.measure.latency import Paired, distribution, paired

__all__ = ["Paired", "chunks", "distribution", "paired", "records"]
