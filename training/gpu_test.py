"""A small test of one device: `python -m paceline.training.gpu_test`; exit 0 and it does well.

Copies must come back as they went, products must be equal each time and near the CPU's, and the memory that
is free must hold what is written to it. No burn-in: it finds what is broken, not what fails once a day.
"""

import argparse
import sys
from typing import Final

import torch

_MATRIX: Final = 1024
_ROUNDS: Final = 8
_COPY_BYTES: Final = 64 << 20
_CHUNK_BYTES: Final = 256 << 20
_MEMORY_SHARE: Final = 0.8
"""Of the free memory that is written and read."""


class BadDevice(Exception):
    """What the device did wrong."""


def check_copies(device: torch.device, size_bytes: int = _COPY_BYTES) -> None:
    there = torch.randint(0, 256, (size_bytes,), dtype=torch.uint8, generator=_seeded())
    again = there.to(device).clone().cpu()
    if not torch.equal(there, again):
        wrong = int((there != again).sum())
        raise BadDevice(f"{wrong} of {size_bytes} bytes came back other than they were copied to it")


def check_products(device: torch.device, rounds: int = _ROUNDS) -> None:
    """The same product each time, to the bit; and the CPU's, as near as single precision goes."""
    left, right = (torch.randn(_MATRIX, _MATRIX, generator=_seeded(at)) for at in (1, 2))
    expected = left.double() @ right.double()
    on_device = left.to(device), right.to(device)
    first = torch.mm(*on_device)
    error = float((first.cpu().double() - expected).abs().max())
    allowed = 1e-3 * float(expected.abs().max())
    if not error <= allowed:  # also for NaN
        raise BadDevice(f"a product of matrices is wrong by {error:g}; at most {allowed:g} is rounding")
    for at in range(rounds):
        if not torch.equal(torch.mm(*on_device), first):
            raise BadDevice(f"the same product came out otherwise at try {at + 2}")


def check_memory(device: torch.device, size_bytes: int) -> None:
    """Two patterns, each the other's complement, written to so many bytes before any is read."""
    held = [
        torch.empty(min(_CHUNK_BYTES, size_bytes - at), dtype=torch.uint8, device=device)
        for at in range(0, size_bytes, _CHUNK_BYTES)
    ]
    for pattern in (0x55, 0xAA):
        for at, chunk in enumerate(held):
            chunk.fill_((pattern + at) % 256)
        for at, chunk in enumerate(held):
            wrong = int((chunk != (pattern + at) % 256).sum())
            if wrong:
                raise BadDevice(f"{wrong} bytes of its memory do not hold what was written")


def check(device: torch.device) -> None:
    """Raises BadDevice, or whatever torch raises of a device that does not work."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        free_bytes = int(torch.cuda.mem_get_info(device)[0] * _MEMORY_SHARE)
    else:
        free_bytes = _CHUNK_BYTES
    check_copies(device)
    check_products(device)
    check_memory(device, free_bytes)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Test one device; the last line says what is wrong with it.")
    parser.add_argument("--device", default="cuda:0", help="as torch names it")
    device = torch.device(parser.parse_args().device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(f"cannot be tested: torch {torch.__version__} of {sys.executable} finds no CUDA device")
    try:
        check(device)
    except (BadDevice, RuntimeError) as error:
        sys.exit(str(error).split("\n")[0])


if __name__ == "__main__":
    main()
