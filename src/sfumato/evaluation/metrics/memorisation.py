"""Does a model repeat its training images? Its nearest ones, beside those of real images."""

from dataclasses import dataclass, replace
from math import ceil

from torch import Tensor

from sfumato.evaluation.metrics.distances import nearest_rows
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.intervals import Estimate, wilson
from sfumato.evaluation.metrics.registry import Metric, Score


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """`share` of generated rows at least as close to the training set as `threshold`.

    `threshold` is the distance that the closest `quantile` of real test rows keep. A model that
    draws from the true distribution gives a share of about `quantile`; far above it, it copies.
    `distances` (N,) and `indices` (N,) name each generated row's nearest training row, `order`
    (N,) sorts generated rows from the closest on; `test_distances` (T,) and `test_indices` (T,) are
    those of test rows.
    """

    share: Estimate
    quantile: float
    threshold: float
    distances: Tensor
    indices: Tensor
    order: Tensor
    test_distances: Tensor
    test_indices: Tensor


def memorisation(
    generated: Tensor,
    training: Tensor,
    *,
    test: Tensor,
    quantile: float = 0.05,
    confidence: float = 0.95,
) -> Memorisation:
    """Compare nearest distances to `training` (M, D): `generated` (N, D) and real `test` (T, D).

    The reasoning of the three-sample test (Meehan et al. 2020), read at one quantile so that the
    figure is a share of images. Test rows that are training rows too are left out: with them the
    threshold could be 0. `ValueError` unless `quantile` of the others is one row or more (it would
    lie below the closest test image), for unequal D, no rows, NaN.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must lie between 0 and 1, got {quantile}")
    real = nearest_rows(test, training, name="test")
    apart = real.distances[real.distances > 0].sort().values
    if len(apart) * quantile < 1:
        raise ValueError(
            f"test has {len(apart)} rows that are no training rows; the {quantile:g} quantile "
            f"needs at least {ceil(1 / quantile)}"
        )
    near = nearest_rows(generated, training, name="generated")
    threshold = float(apart[int(len(apart) * quantile + 1e-9) - 1])
    return Memorisation(
        share=wilson(
            int((near.distances <= threshold).sum()), len(near.distances), confidence=confidence
        ),
        quantile=quantile,
        threshold=threshold,
        distances=near.distances,
        indices=near.indices,
        order=near.distances.argsort(stable=True),
        test_distances=real.distances,
        test_indices=real.indices,
    )


def memorisation_of(generated: ImageFeatures, reference: ImageFeatures) -> Memorisation:
    """The comparison behind the memorised share; `ValueError` for too few reference images."""
    return generated.once(
        "memorisation",
        lambda: memorisation(
            generated.all_rows, reference.training.all_rows, test=reference.all_rows
        ),
    )


def memorised_score(generated: ImageFeatures, reference: ImageFeatures) -> Score:
    found = memorisation_of(generated, reference)
    details = {"quantile": found.quantile, "training_count": float(len(reference.training))}
    return Score(
        estimate=replace(found.share, details=details),
        values=None,
    )


MEMORISED_SHARE = Metric(
    name="memorised_share",
    title="memorised",
    needs="training",
    compute=memorised_score,
    better="lower",
    percent=True,
    digits=0,
    shown=("table",),
    order=40,
    about="memorised: as close to a training image as the closest twentieth of real test images",
)
