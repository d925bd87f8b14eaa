"""The handwritten digits that scikit-learn carries: real images without a download."""

from collections.abc import Iterator

import numpy as np

from sfumato.config.sections import DataConfig
from sfumato.data.table import Part, RawImages, Row

SPLIT = {"train": (0, 897), "classifier": (897, 1497), "test": (1497, 1797)}


def read_digits(config: DataConfig) -> RawImages:
    """The 1,797 handwritten digits that scikit-learn carries (UCI, Alpaydin and Kaynak 1998).

    8x8 pixels with 17 grey levels, stretched to 0..255; split at random by `split_seed` into 897
    for the generator, 600 for the classifier and 300 for test and reference.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(config.split_seed).permutation(len(bunch.target))
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)

    def part(start: int, stop: int) -> Part:
        def read(keep: np.ndarray | None) -> Iterator[Row]:
            for place, number in enumerate(order[start:stop].tolist()):
                if keep is None or keep[place]:
                    yield Row(grey[number], int(bunch.target[number]), None, "digits", number)

        return Part(count=stop - start, read=read)

    return RawImages(
        layout="scikit-learn digits",
        parts={name: part(*bounds) for name, bounds in SPLIT.items()},
        class_names=[str(digit) for digit in range(10)],
        labels="scikit-learn",
        captions="",
        fingerprint="digits",
    )
