"""Run by test_engine_train_loop.py, alone and under torchrun: train on two batches whose images the processes share.

Every process writes ``process<rank>.json`` into the folder that is named on the command line.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from engine.ema import AveragedModel
from engine.optimizer import OptimizerOptions, Schedule, build_optimizer
from engine.train_loop import TrainState, train_one_epoch, wrap_for_processes
from models.learner import BatchLoss, MapsLearner
from utils import distributed
from utils.structures import Batch, ImageMeta, Targets

OPTIONS = OptimizerOptions(
    lr0=1e-4, lrf=1.0, momentum=0.0, warmup_momentum=0.0, weight_decay=0.0, warmup_epochs=0, clip_norm=0
)


@dataclass(frozen=True)
class Count:
    images: torch.Tensor

    def __add__(self, other):
        return Count(self.images + other.images)


def squares(raw_maps, targets, crowd):
    return BatchLoss({"box": raw_maps.square().sum()}, Count(torch.tensor(float(len(raw_maps)))))


def main() -> None:
    distributed.start(torch.device("cpu"))
    model = nn.Conv2d(3, 1, 4, bias=False)
    nn.init.constant_(model.weight, 0.1 + distributed.rank())  # the wrapping gives all processes the main one's
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model, AveragedModel(model), build_optimizer(model, OPTIONS, 64), scaler)
    batches = []
    for values in ((10, 60, 120, 250), (200, 30, 90, 5)):
        mine = torch.tensor(values[distributed.rank() :: distributed.world_size()], dtype=torch.uint8)
        images = mine[:, None, None, None].expand(-1, 3, 4, 4)
        metas = tuple(ImageMeta(number, "", (4, 4)) for number in range(len(mine)))
        batches.append(Batch(images, Targets.empty(), Targets.empty(), metas))
    wrapped = wrap_for_processes(MapsLearner(model, squares), torch.device("cpu"))
    exchanges = []
    if distributed.world_size() > 1:
        wrapped.register_comm_hook(exchanges, exchange)
    schedule = Schedule(OPTIONS, epochs=1, batches_per_epoch=2, accumulate=2)
    losses, counts = train_one_epoch(state, wrapped, batches, schedule, lambda *_: None)
    distributed.copy_from_main(state.average.model)
    content = {
        "weight": model.weight.flatten().tolist(),
        "average": state.average.model.weight.flatten().tolist(),
        "losses": losses,
        "images": float(counts.images),
        "exchanges": len(exchanges),
    }
    before = group_threads()
    del wrapped
    distributed.stop()
    content |= {"threads": before, "threads_after_stop": group_threads()}
    Path(sys.argv[1], f"process{distributed.rank()}.json").write_text(json.dumps(content))


def group_threads() -> int:
    """Return how many threads of the process group run in this process; 0 where the system has no /proc."""
    return sum(path.read_text().startswith("pt_gloo") for path in Path("/proc/self/task").glob("*/comm"))


def exchange(exchanges: list, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average the gradients over two processes, as DistributedDataParallel does itself, and note that it was done."""
    exchanges.append(bucket.index())
    future = dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


if __name__ == "__main__":
    main()
