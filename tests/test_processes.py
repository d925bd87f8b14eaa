"""Order and randomness on 1, 2 and 4 processes, over gloo: exactly equal."""

import subprocess
import sys
from pathlib import Path

import torch

from sfumato.training.state import load_state

# One process imports everything and forks the ranks before torch has started a thread.
RANKS = """
import os, sys, torch
import torch.distributed as dist
from sfumato.data.loading import DeviceBatches
from sfumato.config.sections import DataConfig
from sfumato.data.records import load_records
from sfumato.diffusion.process import RectifiedFlow, VariancePreserving
from sfumato.training.objectives.diffusion import draw_step
from sfumato.training.step import StepContext, random_affine
from sfumato.training.state import save_state

torch.set_num_threads(1)
out, cpu = sys.argv[1], torch.device("cpu")
data = DataConfig(
    source="digits", resolution=8, channels=1, caption=("A handwritten digit {label}", "{word}"),
    value_range=(-1.0, 1.0),
)
records = load_records(data, "train")

def rank_main(rank, world):
    dist.init_process_group(
        "gloo", init_method=f"file://{out}/store-{world}", rank=rank, world_size=world
    )
    batches = DeviceBatches(
        records, seed=3, batch_size=16, device=cpu, rank=rank, world_size=world
    )
    mine = {}
    for images_seen in (0, 16, 880, 896, 1792):  # 897 an epoch: 896 straddles
        context = StepContext(
            seed=3, images_seen=images_seen, total_images=9999, batch_size=16, device=cpu,
            rank=rank, world_size=world,
        )
        batch = batches.at(images_seen)
        draws, flow = (
            draw_step((1, 8, 8), context, process=process, caption_dropout=0.5)
            for process in (VariancePreserving(), RectifiedFlow())
        )
        changes = context.local(random_affine(16, context.generator("augmentation")))
        mine[str(images_seen)] = {
            "images": batch.images, "labels": batch.labels, "prompts": batch.prompts,
            "eps": draws.eps, "t": draws.t, "dropped": draws.dropped, "augmentation": changes,
            "flow_t": flow.t,
        }
    gathered = [None] * world
    dist.all_gather_object(gathered, mine)
    if rank == 0:
        joined = {
            place: {
                name: torch.stack([each[place][name] for each in gathered], 1).flatten(0, 1)
                for name in values
            }
            for place, values in mine.items()
        }
        save_state(joined, f"{out}/world-{world}.safetensors")
    dist.barrier()
    dist.destroy_process_group()

for world in (1, 2, 4):
    children = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            try:
                rank_main(rank, world)
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
        children.append(pid)
    for pid in children:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def test_order_and_noise_are_equal_on_one_two_and_four_processes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RANKS, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    worlds = {n: load_state(tmp_path / f"world-{n}.safetensors") for n in (1, 2, 4)}
    assert len(worlds[1]) == 5
    for place, values in worlds[1].items():
        assert values["eps"].shape == (16, 1, 8, 8)
        for name, whole in values.items():
            for n in (2, 4):
                assert torch.equal(worlds[n][place][name], whole), (n, place, name)
