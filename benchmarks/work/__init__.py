"""What the benchmarks run as jobs: scripts as a user would write them."""
