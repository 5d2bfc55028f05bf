"""Two processes that train on half of each batch end with the weights of one that trains on all of it.

Run as a script, this file is one of the processes.
"""

import copy
import os
import subprocess
import sys
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import holdfast

WORLD = 2
STEPS, B, T, INPUT, HIDDEN = 10, 4, 4, 3, 6
CELLS = {"rnn": holdfast.RNN, "gru": holdfast.GRU, "lstm": holdfast.LSTM}


class Tagger(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.recurrent = CELLS[cell](INPUT, HIDDEN, 2, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x):
        return self.head(self.recurrent(x)[0])


def make(cell):
    torch.manual_seed(0)
    return Tagger(cell)


def train(model, columns):
    """Ten steps of momentum SGD on some columns of each batch [T, B, INPUT]."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x, target = torch.randn(T, B, INPUT, generator=generator), torch.randn(T, B, 2, generator=generator)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[:, columns]), target[:, columns]).backward()
        optimizer.step()


def interpreted(where):
    """The kernels on CPU tensors, or torch's own op."""
    if where == "eager":
        return nullcontext()
    from holdfast.kernels.interpreter import interpret

    torch.backends.cudnn.allow_tf32 = False
    return interpret(seed=0)


def one_of_two(kind, where, cell, rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    model = make(cell)
    if kind == "ddp":
        trained = nn.parallel.DistributedDataParallel(model)
    else:
        fully_shard(model.recurrent)
        trained = fully_shard(model)
    share = B // WORLD
    with interpreted(where):
        train(trained, slice(rank * share, (rank + 1) * share))
    state = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in model.state_dict().items()}
    if rank == 0:
        torch.save(state, f"{folder}/state.pt")
    dist.barrier()
    # A process that exits in the ordinary way is at times ended by gloo's threads ("terminate called without ...").
    os._exit(0)


def each_way():
    """Every way to train with every cell; starting two processes takes seconds, so most are slow tests."""
    quick = [("ddp", "eager", "lstm"), ("fsdp2", "eager", "gru")]
    for way in product(["ddp", "fsdp2"], ["eager", "kernels"], CELLS):
        yield pytest.param(*way, marks=[] if way in quick else [pytest.mark.slow])


@pytest.mark.parametrize(("kind", "where", "cell"), list(each_way()))
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_same_weights_as_one_process(kind, where, cell, tmp_path):
    command = [sys.executable, __file__, kind, where, cell]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(WORLD)
    ]
    try:
        errors = [rank.communicate(timeout=1200)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * WORLD, "\n".join(errors)
    alone = make(cell)
    with holdfast.backend("eager"):
        train(alone, slice(None))
    found = torch.load(Path(tmp_path) / "state.pt", weights_only=True)
    before = make(cell).state_dict()
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
        assert not torch.equal(found[name], before[name])


def test_a_shared_module_trains_in_another_process(tmp_path):
    """share_memory: a child's step is seen here."""
    module = holdfast.LSTM(INPUT, HIDDEN).share_memory()
    before = copy.deepcopy(module.state_dict())
    context = torch.multiprocessing.get_context("fork")
    child = context.Process(target=lambda: train(module_with_head(module), slice(None)))
    child.start()
    child.join(600)
    assert child.exitcode == 0
    assert all(not torch.equal(before[name], t) for name, t in module.state_dict().items())


def module_with_head(module):
    torch.manual_seed(0)

    class WithHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.head = module, nn.Linear(HIDDEN, 2)

        def forward(self, x):
            return self.head(self.recurrent(x)[0])

    return WithHead()


if __name__ == "__main__":
    one_of_two(*sys.argv[1:4], int(sys.argv[4]), sys.argv[5])
