"""The character GPT, sharded over all ranks with FSDP2: gloo on CPUs, NCCL where there are GPUs.

Under Paceline, torchrun, or plain python. It goes on from its newest good checkpoint.
"""

import argparse
import os

import paceline
import torch
from chargpt import batch_of, load_text, make_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--samples", type=int, default=32, help="of a step, over all ranks")
parser.add_argument("--save-every", type=int, default=20)


def main() -> None:
    args = parser.parse_args()
    run = paceline.init()
    device = choose_device()
    if run.world_size > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    model = make_model().to(device)
    if run.world_size > 1:
        mesh = init_device_mesh(device.type, (run.world_size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    restored = run.restore(model=model, optimizer=optimizer)
    done, stop = restored.step if restored else 0, False
    mean, text = float("nan"), load_text()
    print(f"{run.world_size} ranks, step {done} of {args.steps}", flush=True)
    while done < args.steps and not stop:
        shares = batch_of(text, done, args.samples, run.rank, run.world_size)
        loss = model(*(share.to(device) for share in shares))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        mean = mean_over_ranks(loss.detach(), run.world_size)
        run.report(done, loss=mean)
        stop = run.should_stop()
        if stop or done % args.save_every == 0:
            run.save(done, model=model, optimizer=optimizer)
    print(f"rank {run.rank}: loss {mean:.3f} at step {done}", flush=True)
    if run.world_size > 1:
        distributed.barrier()  # leave together: a gloo thread that is still busy may hold up a rank's end
        distributed.destroy_process_group()


def choose_device() -> torch.device:
    """This rank's GPU among those of its node, made the current one; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def mean_over_ranks(loss: torch.Tensor, world_size: int) -> float:
    if world_size > 1:
        distributed.all_reduce(loss)
    return float(loss) / world_size


if __name__ == "__main__":
    main()
