"""The engines: one module each, by the seam in base.py."""
