"""Inside a job: the run, its checkpoints, its metrics. torch is imported here and nowhere else."""
