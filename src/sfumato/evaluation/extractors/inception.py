"""The Inception network behind FID and the Inception Score, as our own torch module.

Not the Inception v3 that torchvision has: the graph `inception-2015-12-05` of the TensorFlow
models, which Heusel et al. 2017 took, with its 1,008 classes, its average pooling that leaves the
padding out and one maximum where the paper has an average. Modules have the names of the
well-known state dictionary, so that its file fits.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_PX = 299
FEATURES, CLASSES = 2048, 1008

Kernel = int | tuple[int, int]
Prepare = Callable[[Tensor], Tensor]


class ConvNorm(nn.Module):
    """Convolution, batch norm and ReLU, none of them with a bias of its own."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: Kernel,
        *,
        stride: int = 1,
        padding: Kernel = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def average_pool(x: Tensor) -> Tensor:
    """3x3 average of the pixels inside the image: TensorFlow counts no padding."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def halving_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


class Mixed(nn.Module):
    """Branches side by side, joined on the channels; a subclass names them in `branches`.

    A branch is a list of steps. A step (name, channels, kernel) is a `ConvNorm` of that name; a
    kernel written "3/2" is 3x3 with stride 2 and no padding, the others keep the size. A tuple of
    steps in place of one branches again. A function pools.
    """

    def __init__(self, channels_in: int, branches: list) -> None:
        super().__init__()
        self.plan = []
        self.channels_out = 0
        for branch in branches:
            channels, steps = channels_in, []
            for step in branch:
                if callable(step):
                    steps.append(step)
                    continue
                split = step if isinstance(step[0], tuple) else (step,)
                for name, channels_out, kernel in split:
                    self.add_module(name, _conv(channels, channels_out, kernel))
                steps.append([name for name, _, _ in split])
                channels = sum(channels_out for _, channels_out, _ in split)
            self.plan.append(steps)
            self.channels_out += channels

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for steps in self.plan:
            y = x
            for step in steps:
                if callable(step):
                    y = step(y)
                else:
                    y = torch.cat([self.get_submodule(name)(y) for name in step], 1)
            outputs.append(y)
        return torch.cat(outputs, 1)


def _conv(channels_in: int, channels_out: int, kernel: Kernel | str) -> ConvNorm:
    if kernel == "3/2":
        return ConvNorm(channels_in, channels_out, 3, stride=2)
    assert not isinstance(kernel, str)
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return ConvNorm(channels_in, channels_out, kernel, padding=(height // 2, width // 2))


def block_35(channels_in: int, pooled: int) -> Mixed:
    """At 35 x 35 pixels: Szegedy et al. 2015b, Fig. 5, with a 5x5."""
    return Mixed(
        channels_in,
        [
            [("branch1x1", 64, 1)],
            [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
            [average_pool, ("branch_pool", pooled, 1)],
        ],
    )


def reduce_to_17(channels_in: int) -> Mixed:
    return Mixed(
        channels_in,
        [
            [("branch3x3", 384, "3/2")],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, "3/2")],
            [halving_pool],
        ],
    )


def block_17(channels_in: int, width: int) -> Mixed:
    """At 17 x 17 pixels: 7x7 as 1x7 and 7x1 (Fig. 6)."""
    across, down = (1, 7), (7, 1)
    return Mixed(
        channels_in,
        [
            [("branch1x1", 192, 1)],
            [("branch7x7_1", width, 1), ("branch7x7_2", width, across), ("branch7x7_3", 192, down)],
            [
                ("branch7x7dbl_1", width, 1),
                ("branch7x7dbl_2", width, down),
                ("branch7x7dbl_3", width, across),
                ("branch7x7dbl_4", width, down),
                ("branch7x7dbl_5", 192, across),
            ],
            [average_pool, ("branch_pool", 192, 1)],
        ],
    )


def reduce_to_8(channels_in: int) -> Mixed:
    return Mixed(
        channels_in,
        [
            [("branch3x3_1", 192, 1), ("branch3x3_2", 320, "3/2")],
            [
                ("branch7x7x3_1", 192, 1),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, "3/2"),
            ],
            [halving_pool],
        ],
    )


def block_8(channels_in: int, pool) -> Mixed:
    """At 8 x 8 pixels: 3x3 as 1x3 beside 3x1 (Fig. 7)."""
    return Mixed(
        channels_in,
        [
            [("branch1x1", 320, 1)],
            [
                ("branch3x3_1", 384, 1),
                (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))),
            ],
            [
                ("branch3x3dbl_1", 448, 1),
                ("branch3x3dbl_2", 384, 3),
                (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))),
            ],
            [pool, ("branch_pool", 192, 1)],
        ],
    )


class Inception(nn.Module):
    """(B, 3, H, W) uint8 or float in [0, 255] -> the 2,048 features of `pool3`, (B, 2048)."""

    def __init__(self, prepare: Prepare | None = None) -> None:
        super().__init__()
        self.prepare = prepare or as_tensorflow1
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b = block_35(192, pooled=32)
        self.Mixed_5c = block_35(256, pooled=64)
        self.Mixed_5d = block_35(288, pooled=64)
        self.Mixed_6a = reduce_to_17(288)
        self.Mixed_6b = block_17(768, width=128)
        self.Mixed_6c = block_17(768, width=160)
        self.Mixed_6d = block_17(768, width=160)
        self.Mixed_6e = block_17(768, width=192)
        self.Mixed_7a = reduce_to_8(768)
        self.Mixed_7b = block_8(1280, average_pool)
        # The paper averages here too. The graph that everyone measures with takes the maximum.
        self.Mixed_7c = block_8(2048, max_pool)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.prepare(images.float())
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halving_pool(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(halving_pool(x))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))

    def logits_unbiased(self, features: Tensor) -> Tensor:
        """Features (B, 2048) -> (B, 1008) without the last bias, as the Inception Score has it."""
        return features @ self.fc.weight.T


def as_tensorflow1(images: Tensor) -> Tensor:
    """(B, 3, H, W) float in [0, 255] -> (B, 3, 299, 299) float, as FID's own graph prepares it."""
    return (resize_like_tensorflow1(images, IMAGE_PX) - 128) / 128


def as_pytorch_fid(images: Tensor) -> Tensor:
    """The same by pytorch-fid: torch's bilinear resize, whose corners lie half a pixel elsewhere,
    and [0, 255] to [-1, 1]."""
    size = (IMAGE_PX, IMAGE_PX)
    return 2 * F.interpolate(images / 255, size, mode="bilinear", align_corners=False) - 1


def resize_like_tensorflow1(images: Tensor, size_px: int) -> Tensor:
    """(B, C, H, W) float -> (B, C, size, size): bilinear as TensorFlow 1 without aligned corners.

    Output pixel i reads at i * H / size, so the corners at the top left fall together and the
    picture moves by up to half a pixel; nothing is smoothed before images are made smaller. Every
    published FID has this in it (`resize_bilinear_op.cc`; Parmar et al. 2022 on what it does).
    """
    x = _interpolate(images, size_px, dim=3)
    return _interpolate(x, size_px, dim=2)


def _interpolate(x: Tensor, size_px: int, *, dim: int) -> Tensor:
    length = x.shape[dim]
    # float32, as TensorFlow reckons: in float64 a few pixels round to another neighbour.
    step = torch.tensor(length / size_px, dtype=torch.float32)
    at = torch.arange(size_px, dtype=torch.float32) * step
    low = at.long()
    share = (at - low).to(x.device).view([-1 if axis == dim else 1 for axis in range(4)])
    low = low.to(x.device)
    below = x.index_select(dim, low)
    above = x.index_select(dim, (low + 1).clamp_max(length - 1))
    return below + (above - below) * share
