"""Weights that are sharded across ranks: the same network, the same average, whole in a file."""

import subprocess
import sys
from pathlib import Path

import pytest

RANKS = """
import copy, os, sys, torch
import torch.distributed as dist
from sfumato.config.schema import load_experiment
from sfumato.config.sections import AveragingConfig
from sfumato.models import ema
from sfumato.models.ema import AveragedModel
from sfumato.models.unet import build_unet
from sfumato.training.sharding import divided_state, shard, whole_state

torch.set_num_threads(1)
out = sys.argv[1]
settings = ["data.resolution=8", "model.block_out_channels=[8,16]"]
settings.append("model.levels=[plain,attention]")
experiment = load_experiment("digits", settings)

def output(network):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network(x, torch.tensor([5, 900]), torch.zeros(2, 8, 512), return_dict=False)[0]

def changed(network):
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(0.9)

def rank_main(rank):
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    network = build_unet(experiment.model, resolution=8, channels=1, seed=0)
    network.to(memory_format=torch.channels_last)  # as on a GPU
    whole = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    average = AveragedModel(network, AveragingConfig(halflife_images=0))  # equals the weights
    shard([network, average.module])
    for on_host in (True, True, False):  # an average samples between its updates
        ema._is_on_host = lambda value: on_host
        changed(network), changed(whole)
        average.update(images_seen=16, batch_size=16, finite=torch.tensor(True))
        expected = output(whole)
        torch.testing.assert_close(output(network), expected)
        torch.testing.assert_close(output(average.module), expected)
    state = whole_state(network, keep=rank == 0)
    if rank == 0:
        assert all(torch.equal(state[name], value) for name, value in whole.state_dict().items())
    else:
        assert all(value is None for value in state.values())
    changed(network)
    network.load_state_dict(divided_state(network, whole.state_dict()))
    torch.testing.assert_close(output(network), expected)
    dist.barrier()
    dist.destroy_process_group()

children = []
for rank in range(2):
    pid = os.fork()
    if pid == 0:
        try:
            rank_main(rank)
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    children.append(pid)
assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
"""


@pytest.mark.slow
def test_sharded_networks_compute_average_and_are_saved_as_whole_ones(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RANKS, str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
