"""Decisions as pure functions of a state and `now_us`: no clock, randomness, I/O or logging in here."""
