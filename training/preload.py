"""What a warm process imports ahead, so that a restarted rank imports nothing. Read by the agent's zygote, by
name.

Importing this imports none of them. tests/training/test_preload.py runs a training step with a save and a
restore and fails when that imports a module that is not loaded by these.
"""

MODULES = (
    "torch",
    "torch._dynamo",
    "torch.optim",
    "torch.distributed",
    "torch.nn.parallel",
    "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict",
    "paceline.training.run",
    "paceline.training.checkpoints",
)
