"""A short training for real, as a trial of a sweep: the same function here and in Ray Tune.

python short_training.py         a trial of ours: its learning rate is run.params["lr"]
"""

STEPS = 50
SAMPLES = 512


def train(lr: float) -> float:
    """The loss of a small net after some steps of SGD on fixed numbers."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = torch.randn(SAMPLES, 32)
    wanted = (inputs @ torch.randn(32, 1)).tanh()
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(STEPS):
        loss = ((model(inputs) - wanted) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.item())


if __name__ == "__main__":
    import paceline

    run = paceline.init()
    run.report(STEPS, loss=train(float(run.params["lr"])))
