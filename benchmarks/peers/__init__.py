"""The peers we measure against. Each module can set its peer up (`python -m benchmarks.peers.NAME setup`)
and run it.

A peer that is not there is no error: `missing()` says why, and the benchmark says what it left out.
"""
