"""How many bytes NNCodec (ISO/IEC 15938-17) makes of integers: run by the Python of its own environment.

``python nncodec_peer.py FILE.npz`` codes the arrays of the file together, without loss, decodes them, compares, and
writes the length of the shorter bitstream, with rows of zeros skipped or not. Imports nothing of laconic: NNCodec pins
other versions of what laconic needs.
"""

import sys

import numpy as np


def main() -> None:
    from nncodec import nnc

    with np.load(sys.argv[1]) as stored:
        arrays = {name: np.ascontiguousarray(stored[name], np.int32) for name in stored.files}
    sizes = []
    for row_skipping in (False, True):
        stream = nnc.compress(arrays, row_skipping=row_skipping, return_bitstream=True)
        found = nnc.decompress(stream)
        if any(not np.array_equal(found[name], values) for name, values in arrays.items()):
            sys.exit("NNCodec gave back other integers")
        sizes.append(len(stream))
    print(min(sizes))


if __name__ == "__main__":
    main()
