"""laconic: the smallest or fastest model above an accuracy floor, on your runtime, with the evidence."""

__version__ = "0.1.0"
