"""Inside a job: the run, its checkpoints, its metrics. torch is imported here and nowhere else,

and here only by what needs it: `run` and all that it imports at its top work without torch, so that
a script that only reports metrics never pays for it. `checkpoints` and below import it.
"""
