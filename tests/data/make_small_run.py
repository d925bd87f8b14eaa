"""Train `small-run`, the run folder that most tests read: `python -m tests.data.make_small_run`.

Takes a minute. Of each checkpoint the averaged weights alone are kept.
"""

import shutil
from pathlib import Path

import torch

from sfumato.base.files import read_json, write_json
from sfumato.config.schema import load_experiment
from sfumato.methods.registry import run_experiment
from sfumato.training.checkpoint import Checkpoints

FOLDER = Path(__file__).parent / "small-run"
SETTINGS = [
    "data.resolution=8",
    "model.block_out_channels=[8]",
    "model.levels=[plain]",
    "model.norm_num_groups=4",
    "training.images=64000",
    "training.optimizer.lr=0.003",
    "training.sample_every_images=64000",
    "training.checkpoint_every_images=32000",
    "sampling.steps=6",
]


def keep_averages(folder: Path) -> None:
    """Remove what no test reads; `FileNotFoundError` outside of a run."""
    shutil.rmtree(folder / "model")
    for file in folder.glob("images*"):
        file.unlink()
    for checkpoint in Checkpoints(folder / "checkpoints").all():
        state = read_json(checkpoint.path / "state.json")
        for part in set(state["files"]) - {"average"}:
            (checkpoint.path / f"{part}.safetensors").unlink()
            del state["files"][part]
        write_json(checkpoint.path / "state.json", state)


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    run_experiment(load_experiment("digits", SETTINGS), FOLDER, device="cpu")
    keep_averages(FOLDER)
