"""What every run does before it trains, done once in the process that `tests.ranks` forks from.

No gradient is computed here: torch refuses backward passes in forks of a process that had one.
"""

import gc
import os

import torch

from sfumato.config.overrides import build
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.data.records import load_records
from sfumato.data.survey import settle
from sfumato.text.opening import load_text_encoder

torch.set_num_threads(1)
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
EXPERIMENT = load_experiment("digits", ["data.resolution=8"])
assert isinstance(EXPERIMENT, DiffusionExperiment)
load_records(settle(EXPERIMENT.data), "train")
with torch.inference_mode():
    load_text_encoder(EXPERIMENT.text).tokens(["A handwritten digit 7"])
build(DiffusionExperiment, EXPERIMENT.model_dump(mode="json"), source="here")
gc.collect()
gc.freeze()  # a fork looks at its own objects alone, and copies no page of the others
