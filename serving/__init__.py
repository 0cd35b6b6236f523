"""Serving: a model folder behind the Open Inference Protocol v2, and what other platforms take.

A server process loads one model; torch and user code are imported there and nowhere else in this room.
"""
