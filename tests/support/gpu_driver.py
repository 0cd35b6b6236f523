"""What NVIDIA's own tool says of this machine's first GPU."""

import subprocess


def smi(*names: str) -> list[str]:
    """The values of nvidia-smi's fields of these names, as it writes them."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [value.strip() for value in told.strip().split(",")]
