"""Every sampler on every pair of schedule and prediction type, with models that are trained."""

import pytest
import torch

from sfumato.config.schema import load_experiment
from sfumato.diffusion.solvers.registry import SAMPLERS
from sfumato.evaluation.classifier import ImageClassifier, load_classifier
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.methods.registry import run_experiment
from tests.conftest import SMALL

COUNT = 200
SCHEDULES = ("linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction")


def class_accuracy(model: Model, classifier: ImageClassifier, *, sampler: str, steps: int) -> float:
    """Percent of `COUNT` digits at w = 1 whose class is that of the caption."""
    labels = torch.arange(COUNT) % 10
    prompts = [f"A handwritten digit {n}" for n in labels]
    images = model.sample(prompts, range(COUNT), guidance=1.0, sampler=sampler, steps=steps).tensor
    return 100 * float((classifier.predict(images) == labels).double().mean())


@pytest.mark.soak
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_samplers_agree_with_ddpm_at_1000_steps(schedule: str, prediction: str, tmp_path) -> None:
    settings = [
        *SMALL,
        "training.images=60000",
        f"diffusion.beta_schedule={schedule}",
        f"diffusion.prediction_type={prediction}",
    ]
    run_experiment(load_experiment("digits", settings), tmp_path / "run")
    model = load(tmp_path / "run", device="cpu")
    assert model.data is not None
    classifier = load_classifier(model.data)
    reference = class_accuracy(model, classifier, sampler="DDPM", steps=1000)
    found = {
        name: class_accuracy(model, classifier, sampler=name, steps=50)
        for name in SAMPLERS["variance_preserving"]
    }
    print(f"{schedule} {prediction}: DDPM at 1,000 steps {reference:.1f} %, at 50 steps {found}")
    assert reference > 80
    assert all(abs(value - reference) <= 5 for value in found.values()), (reference, found)
