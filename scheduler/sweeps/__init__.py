"""Studies: what a sweep, or somebody who uses Optuna, has tried and what came of it."""
