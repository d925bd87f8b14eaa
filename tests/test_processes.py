"""Order and randomness on 1, 2 and 4 processes, over gloo: exactly equal."""

from pathlib import Path

import torch
import torch.distributed as dist

from sfumato.config.sections import DataConfig
from sfumato.data.loading import DeviceBatches
from sfumato.data.records import load_records
from sfumato.diffusion.process import RectifiedFlow, VariancePreserving
from sfumato.training.objectives.diffusion import draw_step
from sfumato.training.state import load_state, save_state
from sfumato.training.step import StepContext, random_affine
from tests.ranks import Forks, ended

DATA = DataConfig(
    source="digits",
    resolution=8,
    channels=1,
    caption=("A handwritten digit {label}", "{word}"),
    value_range=(-1.0, 1.0),
)
PLACES = (0, 16, 880, 896, 1792)
"""Images seen: 897 an epoch, so 896 straddles."""


def rank_main(rank: int, world: int, out: Path) -> None:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    dist.init_process_group(
        "gloo", init_method=f"file://{out}/store-{world}", rank=rank, world_size=world
    )
    records = load_records(DATA, "train")
    batches = DeviceBatches(records, seed=3, batch_size=16, device=cpu, rank=rank, world_size=world)
    mine = {}
    for images_seen in PLACES:
        context = StepContext(
            seed=3,
            images_seen=images_seen,
            total_images=9999,
            batch_size=16,
            device=cpu,
            rank=rank,
            world_size=world,
        )
        batch = batches.at(images_seen)
        draws, flow = (
            draw_step((1, 8, 8), context, process=process, caption_dropout=0.5)
            for process in (VariancePreserving(), RectifiedFlow())
        )
        mine[str(images_seen)] = {
            "images": batch.images,
            "labels": batch.labels,
            "prompts": batch.prompts,
            "eps": draws.eps,
            "t": draws.t,
            "dropped": draws.dropped,
            "augmentation": context.local(random_affine(16, context.generator("augmentation"))),
            "flow_t": flow.t,
        }
    gathered: list = [None] * world
    dist.all_gather_object(gathered, mine)
    if rank == 0:
        joined = {
            place: {
                name: torch.stack([each[place][name] for each in gathered], 1).flatten(0, 1)
                for name in values
            }
            for place, values in mine.items()
        }
        save_state(joined, out / f"world-{world}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def test_order_and_noise_are_equal_on_one_two_and_four_processes(
    forks: Forks, tmp_path: Path
) -> None:
    started = [
        forks.start(rank_main, rank, world, tmp_path)
        for world in (1, 2, 4)
        for rank in range(world)
    ]
    assert set(ended(started, seconds=200)) == {0}
    worlds = {n: load_state(tmp_path / f"world-{n}.safetensors") for n in (1, 2, 4)}
    assert len(worlds[1]) == 5
    for place, values in worlds[1].items():
        assert values["eps"].shape == (16, 1, 8, 8)
        for name, whole in values.items():
            for n in (2, 4):
                assert torch.equal(worlds[n][place][name], whole), (n, place, name)
