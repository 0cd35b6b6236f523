"""A trial that takes a second, whatever its values are."""

import time

import paceline

run = paceline.init()
time.sleep(1.0)
run.report(1, loss=float(run.params["lr"]))
