"""The vocabulary: typed ids, documents, lifecycle states, resources, errors.

Pure: no I/O, no clock, no randomness, and no import of any other Paceline package.
"""
