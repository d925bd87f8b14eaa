"""The training step and sampling loop that ours are compared with, written plainly over diffusers.

A user of diffusers would write them so; `steps.py` times them beside ours.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.base.errors import InputError
from sfumato.config.schema import DiffusionExperiment
from sfumato.data.records import load_records
from sfumato.diffusion.process import Process, VariancePreserving
from sfumato.diffusion.solvers.registry import sampler_of
from sfumato.diffusion.solvers.schedulers import build_scheduler
from sfumato.generation.model import Model
from sfumato.methods.diffusion import with_bank_rows
from sfumato.models.codec import PixelCodec
from sfumato.models.unet import build_unet
from sfumato.text.encoder import NULL
from sfumato.text.opening import load_text_encoder
from sfumato.training.loop import Run
from sfumato.training.objectives.diffusion import DiffusionObjective


def plain_training(experiment: DiffusionExperiment, run: Run) -> Callable[[], Tensor]:
    """A training step written plainly over diffusers, on a copy of the run's network.

    The same data, batch, network, arithmetic, optimizer, clipping and averaging; no log, no check
    that the loss is finite, no order of samples, no micro-batches. Returns the step, which
    returns its loss.
    """
    from diffusers.models.attention_processor import AttnProcessor2_0

    assert isinstance(run.objective, DiffusionObjective)
    training, optimizing = experiment.training, experiment.training.optimizer
    batch, device = training.batch_size, run.device
    bank = run.objective.bank
    records = with_bank_rows(load_records(experiment.data, "train"), bank)
    images = run.objective.codec.encode(records.images[:]).to(device)
    prompts = records.prompts[:, 0].to(device)
    tokens = bank.tokens(torch.arange(len(bank), device=device))
    unet = copy.deepcopy(run.objective.network)
    unet.set_attn_processor(AttnProcessor2_0())  # diffusers' own, not ours of training
    average = copy.deepcopy(unet).eval().requires_grad_(False)
    scheduler = build_scheduler("DDPM", discrete_process(experiment.diffusion))
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=optimizing.lr,
        betas=optimizing.betas,
        weight_decay=optimizing.weight_decay,
        fused=True,
    )
    generator = torch.Generator(device).manual_seed(0)

    def step() -> Tensor:
        chosen = torch.randint(len(images), (batch,), generator=generator, device=device)
        dropped = torch.rand(batch, generator=generator, device=device) < training.caption_dropout
        x0 = images[chosen]
        text = tokens[prompts[chosen].masked_fill(dropped, bank.NULL_INDEX)]
        noise = torch.randn(x0.shape, generator=generator, device=device)
        t = torch.randint(
            scheduler.config.num_train_timesteps, (batch,), generator=generator, device=device
        )
        noisy = scheduler.add_noise(x0, noise, t)
        targets = {"epsilon": noise, "sample": x0}
        target = targets.get(experiment.diffusion.prediction_type)
        if target is None:
            target = scheduler.get_velocity(x0, noise, t)
        with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
            output = unet(noisy, t, text).sample
        loss = F.mse_loss(output.float(), target)
        loss.backward()
        if optimizing.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(unet.parameters(), optimizing.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 0.001)
        return loss

    return step


def example_training(experiment: DiffusionExperiment, run: Run) -> Callable[[], Tensor]:
    """The inner loop of diffusers' text-to-image example, by our reading, without its latents.

    Unlike `plain_training`: the captions are encoded in every step, the loss is read in every step,
    and the optimizer and the average are diffusers' and torch's defaults.
    """
    from diffusers.training_utils import EMAModel

    training, optimizing = experiment.training, experiment.training.optimizer
    device = run.device
    images, ids, text_model = _example_data(experiment, device)
    unet = build_unet(
        experiment.model,
        resolution=images.shape[-1],
        channels=images.shape[1],
        seed=experiment.seed,
    ).to(device)
    average = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
    average.to(device)
    scheduler = build_scheduler("DDPM", discrete_process(experiment.diffusion))
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=optimizing.lr,
        betas=optimizing.betas,
        weight_decay=optimizing.weight_decay,
    )

    def step() -> Tensor:
        chosen = torch.randint(len(images), (training.batch_size,), device=device)
        x0, tokens = images[chosen], text_model(ids[chosen], return_dict=False)[0]
        noise = torch.randn_like(x0)
        t = torch.randint(scheduler.config.num_train_timesteps, (len(x0),), device=device).long()
        noisy = scheduler.add_noise(x0, noise, t)
        target = noise
        if experiment.diffusion.prediction_type == "v_prediction":
            target = scheduler.get_velocity(x0, noise, t)
        with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
            output = unet(noisy, t, tokens, return_dict=False)[0]
        loss = F.mse_loss(output.float(), target.float(), reduction="mean")
        loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
        return loss

    return step


def _example_data(
    experiment: DiffusionExperiment, device: torch.device
) -> tuple[Tensor, Tensor, torch.nn.Module]:
    """All images as floats (N, C, H, W), the token ids of their captions (N, L), and the frozen
    text encoder, on `device`."""
    records = load_records(experiment.data, "train")
    encoder = load_text_encoder(experiment.text)
    ids = encoder.tokenizer(
        [records.captions[int(row)] for row in records.prompts[:, 0]],
        padding="max_length",
        truncation=True,
        max_length=encoder.max_tokens,
        return_tensors="pt",
    ).input_ids
    images = pixel_codec(experiment).encode(records.images[:])
    return images.to(device), ids.to(device), encoder.model.to(device).requires_grad_(False)


def plain_sampling(model: Model, prompts: Sequence[str], *, scale: float) -> Callable[[], Tensor]:
    """The paper's sampling loop over the model's network, scheduler and steps.

    The batch is doubled at every guidance scale, and guidance acts on the network's output. The
    prompts are encoded beforehand. Returns the loop, which returns its images (B, C, H, W).
    """
    unet, device, sampling = model.network.eval(), model.device, model.sampling
    scheduler = build_scheduler(
        sampling.sampler,
        discrete_process(model.process),
        timestep_spacing=sampling.timestep_spacing,
    )
    sampler = sampler_of(sampling.sampler, model.process)
    text = model.text_encoder
    shape = (len(prompts), unet.config["in_channels"], *[unet.config["sample_size"]] * 2)
    ids = text.tokenizer(
        [NULL] * len(prompts) + list(prompts),
        padding="max_length",
        truncation=True,
        max_length=text.max_tokens,
        return_tensors="pt",
    ).input_ids
    with torch.no_grad():
        tokens = text.model(ids.to(device)).last_hidden_state

    @torch.no_grad()
    def draw() -> Tensor:
        generator = torch.Generator("cpu").manual_seed(0)
        noise = {"generator": generator} if sampler.draws_noise else {}
        scheduler.set_timesteps(sampling.steps)
        x_t = torch.randn(shape, generator=generator).to(device) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            doubled = scheduler.scale_model_input(torch.cat([x_t, x_t]), t)
            uncond, cond = unet(doubled, t, tokens).sample.chunk(2)
            output = uncond + scale * (cond - uncond)
            x_t = scheduler.step(output, t, x_t, **noise).prev_sample
        return x_t

    return draw


def pixel_codec(experiment: DiffusionExperiment) -> PixelCodec:
    """`InputError` for an experiment in latents, whose codec would first be fitted."""
    if experiment.codec.kind != "pixel":
        raise InputError(
            f"This measures models of pixels; codec.kind is {experiment.codec.kind}.",
            hint="Leave codec.kind out.",
        )
    return PixelCodec(experiment.data.value_range)


def discrete_process(process: Process) -> VariancePreserving:
    """`InputError` for a process without numbered noise levels, which these loops draw from."""
    if not isinstance(process, VariancePreserving):
        raise InputError(
            f"This measures diffusion.process=variance_preserving alone, not {process.process}.",
            hint="Leave diffusion.process out.",
        )
    return process
