"""The figures of the README: one file per table, each writes its run record to ``benchmarks/records``.

``python -m benchmarks`` runs all of them and writes the tables; ``python -m benchmarks NAME`` runs one.
"""
