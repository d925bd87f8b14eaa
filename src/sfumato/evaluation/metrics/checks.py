"""Checks of arrays that metrics share."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    pass


def checked_features(features: Tensor, *, name: str = "features", rows: int = 1) -> Tensor:
    """`features` (N, D), where they are a finite matrix of at least `rows` rows; `ValueError` else.

    A device without float64 (MPS) gives its features to the CPU.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{name} must be (N, D), got {tuple(features.shape)}")
    if len(features) < rows:
        raise ValueError(f"{name} has {len(features)} rows; at least {rows} are needed")
    if features.is_complex():
        raise ValueError(f"{name} must be real numbers, got {features.dtype}")
    if features.device.type == "mps":
        features = features.cpu()
    unusable = len(features) - int(features.isfinite().all(dim=1).sum())
    if unusable:
        raise ValueError(f"{name} holds NaN or infinity in {unusable} of {len(features)} rows")
    return features


def check_same_width(first: Tensor, second: Tensor) -> None:
    """`ValueError` unless both (N, D) and (M, D) have the same D."""
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"features of two kinds: D = {first.shape[-1]} against D = {second.shape[-1]}; "
            "both sets must come from the same extractor"
        )


def checked_pair(generated: Tensor, reference: Tensor, *, rows: int) -> tuple[Tensor, Tensor]:
    """Both sets, (N, D) and (M, D), checked, of the same D and at least `rows` rows each."""
    generated = checked_features(generated, name="generated", rows=rows)
    reference = checked_features(reference, name="reference", rows=rows)
    check_same_width(generated, reference)
    return generated, reference


def checked_values(values: Tensor, *, name: str = "values") -> Tensor:
    """`values` (N,) as float64 on the CPU, N >= 1 and finite; `ValueError` else."""
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must be (N,) with N >= 1, got {tuple(values.shape)}")
    values = values.detach().cpu().double()
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite, without NaN")
    return values
