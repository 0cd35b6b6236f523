"""The character GPT with DeepSpeed: the ZeRO stage is the configuration's. It goes on from the last
checkpoint that DeepSpeed itself wrote into --checkpoints.
"""

import argparse
import os

import deepspeed
import paceline
from chargpt import batch_of, load_text, make_model
from torch import distributed

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--save-every", type=int, default=20)
parser.add_argument("--checkpoints", required=True, help="a folder that all instances see")
parser = deepspeed.add_config_arguments(parser)


def main() -> None:
    args = parser.parse_args()
    deepspeed.init_distributed()
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    run = paceline.init()
    engine, _, _, _ = deepspeed.initialize(args=args, model=make_model())
    _, client_state = engine.load_checkpoint(args.checkpoints)
    done, stop = client_state["step"] if client_state else 0, False
    mine, text = float("nan"), load_text()
    stage, where = engine.zero_optimization_stage(), os.environ.get("DS_ACCELERATOR", "gpu")
    print(f"rank {rank} of {world_size}: ZeRO-{stage} on {where}, step {done} of {args.steps}", flush=True)
    while done < args.steps and not stop:
        shares = batch_of(text, done, engine.train_batch_size(), rank, world_size)
        loss = engine(*(share.to(engine.device) for share in shares))
        engine.backward(loss)
        engine.step()
        done += 1
        mine = float(loss)
        run.report(done, loss=mine)
        stop = run.should_stop()
        if stop or done % args.save_every == 0:
            engine.save_checkpoint(args.checkpoints, client_state={"step": done})
    print(f"rank {rank}: loss {mine:.3f} at step {done}", flush=True)
    distributed.barrier()  # leave together: a gloo thread that is still busy may hold up a rank's end
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
