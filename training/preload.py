"""What a warm process imports ahead, so that a restarted rank imports nothing. Read by the agent's zygote, by
name.

Importing this imports none of them. tests/training/test_preload.py trains, saves and restores, and fails when
that imports a module that these had not loaded.
"""

MODULES = (
    "numpy",
    "torch",
    "torch._dynamo",
    "torch.optim",
    "torch.utils.data",
    "torch.nn.parallel",
    "torch.distributed",
    "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict",
    "paceline.training.run",
    "paceline.training.checkpoints",
    "paceline.training.warm",
)
