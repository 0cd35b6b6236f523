"""Optuna's side of studies, for whoever imports Optuna: the sampler's process in the scheduler, jobs that run
trials, and the client's storage. The four rooms above never import each other, so what they share is here.
"""
