"""Run by test_script_train_processes.py, alone and under torchrun: train.py, with a record of the loss of every batch.

Every process writes ``losses<rank>.json``, the sums of its loss parts, into the present folder.
"""

import json
from pathlib import Path

import train
from engine import train_loop
from utils import distributed
from utils.errors import run_command


def main() -> None:
    losses = []
    original = train_loop.add_gradients

    def recorded(*arguments):
        parts, counts = original(*arguments)
        losses.append(parts)
        return parts, counts

    train_loop.add_gradients = recorded
    train.main()
    Path(f"losses{distributed.rank()}.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    run_command(main)
