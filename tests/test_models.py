from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sfumato.base.randomness import generator_for
from sfumato.config.schema import load_experiment
from sfumato.config.sections import AveragingConfig, UNetConfig
from sfumato.models import cpu_kernels
from sfumato.models.cpu_kernels import (
    CpuAttention,
    few_keys_attention,
    small_heads_attention,
    speed_up_on_cpu,
)
from sfumato.models.ema import AveragedModel, averaging_decay
from sfumato.models.text_projection import MOST_BATCHES, text_projected_once
from sfumato.models.unet import build_unet, parameter_count


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("mnist", 3_140_385),
        ("mnist-table5", 23_988_577),
        ("cifar10", 87_983_363),
        ("cifar10-45m", 44_273_667),
        ("cifar10-small", 36_862_531),
        ("cifar10-tiny", 2_499_939),
        ("wikiart", 347_990_531),
        ("wikiart-150m", 155_169_539),
        ("wikiart-small", 69_849_411),
        ("wikiart-tiny", 2_499_939),
    ],
)
def test_networks_have_their_parameter_counts(preset: str, count: int) -> None:
    """By arithmetic and of the network itself."""
    experiment = load_experiment(preset)
    resolution, channels = experiment.data.resolution, experiment.data.channels
    assert parameter_count(experiment.model, channels=channels) == count
    with torch.device("meta"):
        unet = build_unet(experiment.model, resolution=resolution, channels=channels, seed=0)
    assert sum(parameter.numel() for parameter in unet.parameters()) == count


def test_heads_are_counted_by_diffusers_keyword_or_by_their_channels() -> None:
    """`attention_head_dim` is a number of heads in this network; `head_channels` a head's width."""
    settings = {
        "block_out_channels": (32, 64),
        "levels": ("attention", "attention"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
    }
    shapes = {}
    for name in ("attention_head_dim", "head_channels"):
        config = UNetConfig(**settings, **{name: 16})
        unet = build_unet(config, resolution=8, channels=1, seed=0)
        shapes[name] = {
            (module.heads, module.to_q.out_features // module.heads)
            for module in unet.modules()
            if hasattr(module, "heads")
        }
        told = {
            tuple(int(word) for word in part.split() if word.isdecimal())[:2]
            for part in config.heads_text.split("), ")
        }
        assert told == shapes[name]
    assert shapes["attention_head_dim"] == {(16, 2), (16, 4)}
    assert shapes["head_channels"] == {(2, 16), (4, 16)}


def test_weights_are_a_function_of_the_seed_and_nothing_global() -> None:
    config = UNetConfig(
        block_out_channels=(8, 16),
        levels=("plain", "attention"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    )
    before = torch.get_rng_state()
    first, second, other = (
        build_unet(config, resolution=8, channels=1, seed=seed).state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])


def test_text_is_projected_once_with_the_same_bits() -> None:
    config = UNetConfig(
        block_out_channels=(8, 16),
        levels=("plain", "attention"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    )
    unet = build_unet(config, resolution=8, channels=1, seed=0).eval()
    projected = []
    layer = next(m for name, m in unet.named_modules() if name.endswith("attn2.to_k"))
    layer.register_forward_hook(lambda *_: None)  # hooks of others stay
    inner = layer.forward
    layer.forward = lambda tokens: projected.append(len(tokens)) or inner(tokens)
    x_t, t = torch.randn(4, 1, 8, 8), torch.full((4,), 500)
    texts = [torch.randn(4, 3, 16) for _ in range(2)]
    with torch.no_grad():
        plain = [unet(x_t, t, text).sample for text in texts]
        projected.clear()
        with text_projected_once(unet):
            for _ in range(3):
                assert all(
                    torch.equal(unet(x_t, t, text).sample, expected)
                    for text, expected in zip(texts, plain, strict=True)
                )
            assert len(projected) == 2
            for _ in range(MOST_BATCHES + 2):  # new tensors at the same few addresses
                text = torch.randn(4, 3, 16)
                unet(x_t, t, text)
            assert torch.equal(unet(x_t, t, texts[0]).sample, plain[0])
        projected.clear()
        unet(x_t, t, texts[0])
        assert len(projected) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": ("plain",)},
        {"norm_num_groups": 32},
        {"attention_head_dim": 3},
        {"head_channels": 5},
        {"head_channels": 0},
        {"head_channels": -8},
    ],
    ids=str,
)
def test_networks_that_cannot_be_built_are_refused(changes: dict, refused) -> None:
    values = {
        "block_out_channels": (8, 16),
        "levels": ("plain", "attention"),
        "norm_num_groups": 4,
        "attention_head_dim": 2,
    }
    with refused(ValueError):
        UNetConfig(**{**values, **changes})


def test_average_equals_its_closed_form() -> None:
    """average_n = d^n w_0 + (1 - d) sum_k d^(n-k) w_k, with one decay d for all steps."""
    config = AveragingConfig(halflife_images=100, rampup_ratio=1e9)
    model = torch.nn.Linear(3, 2).double()
    average = AveragedModel(model, config)
    decay = averaging_decay(config, images_seen=1, batch_size=25)
    assert decay == pytest.approx(0.5**0.25)
    history = [model.weight.detach().clone()]
    for step in range(1, 8):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)))
        history.append(model.weight.detach().clone())
        average.update(images_seen=25 * step, batch_size=25, finite=torch.tensor(True))
    n = len(history) - 1
    expected = decay**n * history[0] + (1 - decay) * sum(
        decay ** (n - k) * history[k] for k in range(1, n + 1)
    )
    torch.testing.assert_close(average.module.weight, expected, rtol=1e-12, atol=1e-12)
    assert not average.module.weight.requires_grad


def test_average_starts_short_and_is_free_of_the_batch_size() -> None:
    config = AveragingConfig(halflife_images=1000, rampup_ratio=0.1)
    assert averaging_decay(config, images_seen=500, batch_size=50) == 0.5
    assert averaging_decay(config, images_seen=10**6, batch_size=1000) == 0.5
    one = averaging_decay(config, images_seen=10**6, batch_size=64)
    two = averaging_decay(config, images_seen=10**6, batch_size=32) ** 2
    assert one == pytest.approx(two)


@pytest.mark.parametrize(("groups", "dead"), [(32, 12), (8, 0)])
def test_as_many_norm_groups_as_channels_cancel_the_time_embedding(groups: int, dead: int) -> None:
    """A shift that is constant over a group is subtracted again with its mean: with 32 groups on 32
    channels 12 of the paper's 22 ResNet blocks learn nothing of the time."""
    model = load_experiment("mnist", [f"model.norm_num_groups={groups}"]).model
    assert parameter_count(model, channels=1) == 3_140_385
    unet = build_unet(model, resolution=28, channels=1, seed=0)
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(4, 1, 28, 28, generator=generator)
    tokens = torch.randn(4, 8, 512, generator=generator)
    output = unet(x_t, torch.tensor([10, 300, 600, 990]), tokens, return_dict=False)[0]
    (output - torch.randn(output.shape, generator=generator)).square().mean().backward()
    largest = [
        float(weight.grad.abs().max())
        for name, weight in unet.named_parameters()
        if name.endswith("time_emb_proj.weight")
    ]
    assert len(largest) == 22
    assert sum(gradient < 1e-8 for gradient in largest) == dead
    assert sum(gradient > 1e-6 for gradient in largest) == 22 - dead


# Attention of small sizes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attend", "batch", "heads", "length", "keys", "channels"),
    [
        (small_heads_attention, 2, 8, 196, 196, 8),
        (small_heads_attention, 3, 2, 64, 64, 16),
        (small_heads_attention, 1, 3, 400, 256, 4),
        (small_heads_attention, 2, 4, 7, 100, 8),
        (few_keys_attention, 2, 8, 196, 8, 8),
        (few_keys_attention, 3, 4, 49, 12, 32),
        (few_keys_attention, 1, 2, 5, 1, 4),
    ],
)
def test_small_sizes_are_as_exact_as_torchs_kernel(
    attend: Callable[..., Tensor], batch: int, heads: int, length: int, keys: int, channels: int
) -> None:
    """Output and gradients against double precision: no more than twice torch's own error."""
    draw = generator_for(0, "attention")
    shapes = [(batch, n, heads * channels) for n in (length, keys, keys, length)]
    q, k, v, weight = (torch.randn(shape, generator=draw) for shape in shapes)

    def found(attention: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        parts = [x.view(batch, -1, heads, channels).transpose(1, 2) for x in inputs]
        out = attention(*parts).transpose(1, 2).reshape(weight.shape)
        (out * weight.to(dtype)).sum().backward()
        gradients = [x.grad for x in inputs]
        return [out.detach(), *(x for x in gradients if x is not None)]

    exact = found(scaled_dot_product_attention, torch.float64)
    torchs = found(scaled_dot_product_attention, torch.float32)
    ours = found(attend, torch.float32)
    assert len(ours) == 4
    for name, right, other, own in zip("oqkv", exact, torchs, ours, strict=True):
        assert (own - right).abs().max() < 2 * (other - right).abs().max() + 1e-7, name


@pytest.mark.parametrize("attend", [small_heads_attention, few_keys_attention])
def test_rows_of_small_sizes_do_not_depend_on_each_other(attend: Callable[..., Tensor]) -> None:
    q, k, v = torch.randn(3, 9, 8, 100, 8, generator=generator_for(1, "attention"))
    together = attend(q, k, v)
    alone = torch.cat([attend(*(x[i : i + 1] for x in (q, k, v))) for i in range(9)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_what_is_not_small_plain_or_float32_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for name in ("small_heads_attention", "few_keys_attention"):
        monkeypatch.setattr(
            cpu_kernels, name, lambda query, key, value, name=name: taken.append(name) or query
        )
    small, wide, middle, few = (
        torch.randn(1, 2, *shape) for shape in ((100, 8), (100, 32), (16, 8), (8, 32))
    )
    mask = torch.zeros(100, 100)
    with CpuAttention():
        scaled_dot_product_attention(small, small, small, dropout_p=0.0, is_causal=False)
        assert taken == ["small_heads_attention"]
        scaled_dot_product_attention(wide, few, few)
        assert taken == ["small_heads_attention", "few_keys_attention"]
        for x in (wide, middle, small.double(), small.bfloat16(), few.bfloat16()):
            assert scaled_dot_product_attention(x, x, x).shape == x.shape
        scaled_dot_product_attention(small, small, small, attn_mask=mask)
        scaled_dot_product_attention(small, small, small, is_causal=True)
    scaled_dot_product_attention(small, small, small)
    assert len(taken) == 2


def test_a_step_of_mnist_has_the_same_gradients_either_way() -> None:
    config = load_experiment("mnist").model
    unet = build_unet(config, resolution=28, channels=1, seed=0)
    draw = generator_for(2, "attention")
    x, tokens = torch.randn(2, 1, 28, 28, generator=draw), torch.randn(2, 8, 512, generator=draw)
    gradients = []
    for change in (lambda network: None, speed_up_on_cpu):
        change(unet)
        unet.zero_grad()
        unet(x, torch.tensor([10, 900]), tokens, return_dict=False)[0].square().mean().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None])
        )
    assert 0 < (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[0].abs().max()
