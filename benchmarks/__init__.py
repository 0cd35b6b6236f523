"""Benchmarks: each is `python -m benchmarks.NAME`, runs a peer beside us and prints ratios. Never in the
wheel.
"""
