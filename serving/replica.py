"""`python -m paceline.serving.replica`: a model's server as an endpoint's replica.

It listens on the node's address, tells in its task's journal where, and answers those alone that carry the
secret of this attempt, which only the scheduler and the endpoint's router know.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from .control import Admission
from .server import main as serve
from .telling import node_address, tell_serving


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(prog="paceline.serving.replica", description="Serve for an endpoint.")
    parser.add_argument("--name", required=True, help="of the endpoint, in URLs")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--script", default="", metavar="FILE")
    args = parser.parse_args(argv)
    words = ["--engine", args.engine, "--model", args.model, "--name", args.name, "--host", node_address()]
    words += ["--script", args.script] if args.script else []
    secret = Admission.from_environment().token
    return serve(words, secret=secret, on_listening=tell_serving)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # threads that a model's code left must not keep the process
