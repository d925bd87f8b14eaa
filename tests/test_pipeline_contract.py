"""What users of diffusers expect of any text-to-image pipeline, asked of ours.

The questions are those of `PipelineTesterMixin` and the mixins for callbacks and schedulers in
diffusers' own tests.
"""

import copy
import inspect
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from sfumato.base.errors import InputError, PickleWarning
from sfumato.config.sections import UNetConfig
from sfumato.diffusion.process import RectifiedFlow
from sfumato.generation.export import pipeline_of
from sfumato.generation.model import Model
from sfumato.generation.pipeline import TextToImagePipeline
from sfumato.models.unet import build_unet

PROMPT = "A handwritten digit 3"
PROMPTS = [f"A handwritten digit {digit}" for digit in range(2)]
STEPS = 3


@pytest.fixture
def pipe(small_model: Model) -> TextToImagePipeline:
    return copy.deepcopy(pipeline_of(small_model))  # tests change what is in it


def images_of(pipe, prompt=PROMPT, **arguments) -> torch.Tensor:
    """float (N, C, H, W) in [0, 1], of seed 0 unless told otherwise."""
    if not {"seeds", "generator", "latents"} & arguments.keys():
        arguments["generator"] = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": STEPS, "output_type": "pt"} | arguments
    return pipe(prompt, **settings).images


def untrained(*, channels: int) -> torch.nn.Module:
    """A network for 8x8 pixels on two levels."""
    config = UNetConfig(block_out_channels=(32, 64), levels=("attention", "plain"))
    return build_unet(config, resolution=8, channels=channels, seed=0)


# The call -----------------------------------------------------------------------------------------


def test_the_call_has_the_parameters_of_diffusers_in_their_order() -> None:
    """Those of Stable Diffusion that mean something here, by name and by position."""
    theirs = inspect.signature(diffusers.StableDiffusionPipeline.__call__).parameters
    ours = inspect.signature(TextToImagePipeline.__call__).parameters
    shared = [name for name in theirs if name in ours]
    own_order = [name for name in ours if name in theirs]
    assert own_order == shared
    assert set(theirs) - set(ours) == {
        "timesteps",
        "sigmas",
        "eta",
        "ip_adapter_image",
        "ip_adapter_image_embeds",
        "cross_attention_kwargs",
        "guidance_rescale",
        "clip_skip",
        "kwargs",
    }
    assert all(p.default is not p.empty for name, p in ours.items() if name != "self")


def test_components_are_those_of_the_constructor(pipe) -> None:
    """A second pipeline of the same components gives the same images."""
    names = set(inspect.signature(TextToImagePipeline.__init__).parameters) - {"self"}
    settings = {"process", "codec", "sampling", "max_tokens", "provenance"}
    assert set(pipe.components) == names - settings
    again = TextToImagePipeline(**pipe.components, **{key: pipe.config[key] for key in settings})
    assert torch.equal(images_of(again), images_of(pipe))
    assert torch.equal(images_of(TextToImagePipeline.from_pipe(pipe)), images_of(pipe))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_several_images_a_prompt(pipe, prompts, count) -> None:
    """Those of one prompt lie beside each other."""
    seeds = range(len(prompts) * count)
    images = images_of(pipe, prompts, num_images_per_prompt=count, seeds=seeds)
    repeated = [prompt for prompt in prompts for _ in range(count)]
    expected = images_of(pipe, repeated, seeds=seeds)
    assert torch.equal(images, expected)
    assert len(images) == len(seeds)


def test_an_image_of_a_batch_is_the_image_alone(pipe) -> None:
    prompts = [*PROMPTS, 20 * "very long "]
    with pytest.warns(UserWarning, match="Cut to 16 tokens"):
        together = images_of(pipe, prompts, seeds=[0, 1, 2])
    for index, prompt in enumerate(prompts):
        alone = images_of(pipe, prompt, seeds=[index])
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-4)


def test_one_generator_draws_for_all_prompts_as_in_diffusers(pipe) -> None:
    one = torch.Generator().manual_seed(7)
    images = images_of(pipe, PROMPTS, generator=one)
    noise = randn_tensor((2, 1, 8, 8), generator=torch.Generator().manual_seed(7))
    assert torch.equal(images, images_of(pipe, PROMPTS, latents=noise))
    following = torch.Generator().manual_seed(7)
    torch.randn(2, 1, 8, 8, generator=following)
    assert torch.equal(one.get_state(), following.get_state())
    assert not torch.equal(images[0], images_of(pipe, PROMPTS[0], seeds=[8])[0])


def test_latents_are_the_noise_that_a_seed_draws(pipe) -> None:
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    before = noise.clone()
    assert torch.equal(images_of(pipe, latents=noise), images_of(pipe, seeds=[4]))
    assert torch.equal(noise, before)
    assert not torch.equal(images_of(pipe, latents=noise), images_of(pipe, latents=-noise))


def test_embeddings_are_as_good_as_prompts(pipe) -> None:
    """Also without a text encoder, and encoded by a pipeline that has nothing else."""
    wanted = images_of(pipe, PROMPTS, seeds=[0, 1], negative_prompt=[PROMPT, None])
    only_text = TextToImagePipeline(
        unet=None,
        scheduler=None,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        max_tokens=pipe.config["max_tokens"],
    )
    cond, uncond = only_text.encode_prompt(PROMPTS, negative_prompt=[PROMPT, None])
    assert cond.shape == uncond.shape == (2, 16, pipe.unet.config["cross_attention_dim"])
    pipe.text_encoder = pipe.tokenizer = None
    embeds = {"prompt_embeds": cond, "negative_prompt_embeds": uncond}
    assert torch.equal(images_of(pipe, None, seeds=[0, 1], **embeds), wanted)


def test_the_empty_prompt_is_the_negative_of_embeddings_without_one(pipe) -> None:
    cond, _ = pipe.encode_prompt(PROMPT)
    assert torch.equal(images_of(pipe, None, prompt_embeds=cond), images_of(pipe))


def test_negative_prompts_are_one_or_one_a_prompt(pipe) -> None:
    both = images_of(pipe, PROMPTS, seeds=[0, 1], negative_prompt=[PROMPT, None])
    first = images_of(pipe, PROMPTS, seeds=[0, 1], negative_prompt=PROMPT)
    second = images_of(pipe, PROMPTS, seeds=[0, 1], negative_prompt=None)
    assert torch.equal(both, torch.stack([first[0], second[1]]))
    assert not torch.equal(first[1], second[1])
    assert torch.equal(second, images_of(pipe, PROMPTS, seeds=[0, 1]))


def test_images_of_another_size(pipe) -> None:
    images = images_of(pipe, PROMPTS, seeds=[0, 1], height=12, width=6)
    assert images.shape == (2, 1, 12, 6)
    assert torch.equal(images_of(pipe, height=8, width=8), images_of(pipe))
    noise = torch.randn(1, 1, 12, 6, generator=torch.Generator().manual_seed(0))
    alone = images_of(pipe, PROMPTS[0], latents=noise, height=12, width=6)
    torch.testing.assert_close(alone[0], images[0], rtol=0, atol=1e-4)


def test_a_latent_is_what_the_codec_decodes(pipe) -> None:
    latent = images_of(pipe, output_type="latent")
    assert torch.equal((latent + 1) / 2, images_of(pipe))
    assert float(latent.abs().max()) <= 1  # x0 is clamped


@pytest.mark.parametrize("channels", [1, 3])
def test_output_types_of_grey_and_colour(channels, small_model: Model) -> None:
    pipe = pipeline_of(replace(small_model, network=untrained(channels=channels)))
    pt, array = (images_of(pipe, output_type=kind) for kind in ("pt", "np"))
    (picture,) = images_of(pipe, output_type="pil")
    assert torch.equal(torch.from_numpy(array).permute(0, 3, 1, 2), pt)
    assert pt.shape == (1, channels, 8, 8)
    assert picture.mode == {1: "L", 3: "RGB"}[channels]
    expected = np.array(picture).reshape(8, 8, channels)
    assert (np.abs(array[0] * 255 - expected) <= 0.501).all()


def test_a_tuple_has_the_same_images(pipe) -> None:
    generator = torch.Generator().manual_seed(0)
    result = pipe(
        PROMPT,
        generator=generator,
        num_inference_steps=STEPS,
        output_type="pt",
        return_dict=False,
    )
    assert isinstance(result, tuple)
    assert torch.equal(result[0], images_of(pipe))


@pytest.mark.parametrize("seed", [3, np.int64(3), torch.tensor(3), [3], torch.tensor([3])], ids=str)
def test_seeds_of_every_kind(pipe, seed) -> None:
    assert torch.equal(images_of(pipe, seeds=seed), images_of(pipe, seeds=[3]))


def test_what_a_call_refuses(pipe, refused) -> None:
    embeds, _ = pipe.encode_prompt(PROMPTS)
    for arguments in (
        {"prompt": None},
        {"prompt_embeds": embeds},
        {"prompt": []},
        {"negative_prompt": ["a", "b"]},
        {"negative_prompt": "a", "negative_prompt_embeds": embeds[:1]},
        {"prompt": None, "prompt_embeds": embeds[..., :5]},
        {"prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": embeds[:, :3]},
        {"width": 0},
        {"latents": torch.zeros(2, 1, 8, 8)},
        {"latents": torch.zeros(1, 1, 6, 6), "height": 8},
        {"seeds": [0.5]},
        {"seeds": [0, 1]},
        {"output_type": "gif"},
        {"callback_on_step_end_tensor_inputs": ["noise"]},
        {"num_images_per_prompt": 0},
    ):
        with refused(InputError):
            images_of(pipe, arguments.pop("prompt", PROMPT), **arguments)
    pipe.unet = untrained(channels=1)
    with refused(InputError):
        images_of(pipe, height=9)
    pipe.text_encoder = None
    with refused(InputError):
        images_of(pipe)
    pipe.unet = None
    with refused(InputError):
        images_of(pipe)


# Callbacks ----------------------------------------------------------------------------------------


def test_a_callback_gets_the_tensors_it_asks_for(pipe) -> None:
    seen = []

    def look(owner, index, time, tensors):
        seen.append((index, time, {name: value.shape for name, value in tensors.items()}))
        return tensors

    everything = pipe._callback_tensor_inputs
    plain = images_of(pipe)
    images = images_of(
        pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=everything
    )
    torch.testing.assert_close(images, plain, rtol=0, atol=1e-6)
    assert [index for index, _, _ in seen] == [0, 1, 2]
    assert [time for _, time, _ in seen] == [999, 666, 332]
    assert all(set(shapes) == set(everything) for _, _, shapes in seen)
    assert seen[0][2]["latents"] == seen[0][2]["x0"] == (1, 1, 8, 8)
    assert seen[0][2]["prompt_embeds"] == seen[0][2]["negative_prompt_embeds"] == (1, 16, 512)
    seen.clear()
    images_of(pipe, callback_on_step_end=look)
    assert all(set(shapes) == {"latents"} for _, _, shapes in seen)


def test_latents_that_a_callback_returns_are_used(pipe) -> None:
    def empty_at_the_end(owner, index, time, tensors):
        if index == owner.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    images = images_of(pipe, output_type="latent", callback_on_step_end=empty_at_the_end)
    assert not images.any()
    assert pipe.num_timesteps == STEPS

    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(5))

    def exchange(owner, index, time, tensors):
        return {"latents": noise} if index == 0 else {}

    first, second = (
        images_of(pipe, seeds=[seed], callback_on_step_end=exchange) for seed in (0, 1)
    )
    assert not torch.equal(images_of(pipe, seeds=[0]), images_of(pipe, seeds=[1]))
    torch.testing.assert_close(first, second, rtol=0, atol=0.5)  # DPM-Solver++ keeps the last x0
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    first, second = (
        images_of(pipe, seeds=[seed], callback_on_step_end=exchange) for seed in (0, 1)
    )
    assert torch.equal(first, second)


def test_embeddings_that_a_callback_returns_are_used(pipe) -> None:
    """From the first step on the caption is another one; in place too."""
    other, _ = pipe.encode_prompt(PROMPTS[0])
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    names = ["prompt_embeds"]

    def exchange(owner, index, time, tensors):
        return {"prompt_embeds": other}

    def exchange_in_place(owner, index, time, tensors):
        tensors["prompt_embeds"].copy_(other)
        return tensors

    by_return, in_place = (
        images_of(pipe, callback_on_step_end=one, callback_on_step_end_tensor_inputs=names)
        for one in (exchange, exchange_in_place)
    )
    assert torch.equal(by_return, in_place)
    assert not torch.equal(by_return, images_of(pipe))
    without_return = images_of(
        pipe,
        callback_on_step_end=lambda *arguments: exchange_in_place(*arguments) and None,
        callback_on_step_end_tensor_inputs=names,
    )
    assert torch.equal(without_return, images_of(pipe))


def test_guidance_that_a_callback_sets_is_used(pipe) -> None:
    def stronger(owner, index, time, tensors):
        owner._guidance_scale += 1.0
        return tensors

    def off(owner, index, time, tensors):
        owner._guidance_scale = 1.0

    images = images_of(pipe, guidance_scale=2.0, callback_on_step_end=stronger)
    assert pipe.guidance_scale == 2 + STEPS
    assert not torch.equal(images, images_of(pipe, guidance_scale=2.0))
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    images_of(pipe, [PROMPT] * 16, seeds=range(16), guidance_scale=3.0, callback_on_step_end=off)
    hook.remove()
    assert sum(calls) - calls.count(0) >= 16 * (2 + 1 + 1)
    assert calls[-1] == 16
    assert not pipe.do_classifier_free_guidance


def test_interrupt_ends_the_call(pipe) -> None:
    """The result is x_t of that step; the next call is a whole one."""
    whole, told = images_of(pipe), []

    def stop(owner, index, time, tensors):
        told.append(tensors["latents"])
        owner._interrupt = index == 1
        return tensors

    images = images_of(pipe, output_type="latent", callback_on_step_end=stop)
    assert len(told) == 2
    assert pipe.interrupt
    assert torch.equal(images, told[1].clamp(-1, 1))
    assert torch.equal(images_of(pipe), whole)
    assert not pipe.interrupt


def test_a_callback_may_keep_and_change_its_tensors(pipe) -> None:
    kept = []
    images_of(pipe, callback_on_step_end=lambda _, i, t, tensors: kept.append(tensors["latents"]))
    kept[0].mul_(2)  # tensors of inference mode could not be changed here
    assert len(kept) == STEPS


def test_times_of_a_flow_are_those_of_its_network(small_model: Model) -> None:
    model = replace(small_model, process=RectifiedFlow()).with_(sampler="Euler")
    times = []
    images_of(
        pipeline_of(model),
        num_inference_steps=4,
        callback_on_step_end=lambda _, i, time, tensors: times.append(time),
    )
    assert times == [1000, 750, 500, 250]


def test_a_scheduler_of_a_flow(small_model: Model, refused) -> None:
    model = replace(small_model, process=RectifiedFlow()).with_(sampler="Euler")
    pipe = pipeline_of(model)
    plain = images_of(pipe)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    assert torch.equal(images_of(pipe), plain)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert not torch.equal(images_of(pipe), plain)
    assert pipe.model.settings()["sampler_settings"] == {"shift": 3.0}
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    assert pipe.model.sampling.sampler == "Heun"
    pipe.scheduler = diffusers.DDIMScheduler()
    with refused(InputError):
        images_of(pipe)


# Files, copies and devices ------------------------------------------------------------------------


def test_a_saved_pipeline_opens_with_and_without_sfumato(pipe, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    again = TextToImagePipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert torch.equal(images_of(again), images_of(pipe))
    alone = diffusers.DiffusionPipeline.from_pretrained(
        tmp_path, custom_pipeline=str(tmp_path), trust_remote_code=True, low_cpu_mem_usage=False
    )
    assert type(alone) is not TextToImagePipeline
    assert torch.equal(images_of(alone), images_of(pipe))
    alone.save_pretrained(tmp_path / "again")  # the file writes itself
    written = [folder / "pipeline.py" for folder in (tmp_path, tmp_path / "again")]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_pickles_are_not_written(pipe, warned, tmp_path: Path) -> None:
    """The same files as without being asked for pickles."""
    with warned(PickleWarning):
        pipe.save_pretrained(tmp_path / "asked", safe_serialization=False)
    pipe.save_pretrained(tmp_path / "plain")
    asked, plain = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.*")}
        for folder in (tmp_path / "asked", tmp_path / "plain")
    )
    assert asked == plain
    assert Path("unet/diffusion_pytorch_model.safetensors") in asked


def test_an_optional_component_stays_absent(pipe, tmp_path: Path) -> None:
    assert pipe.weak_unet is None
    pipe.save_pretrained(tmp_path)
    assert TextToImagePipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False).weak_unet is None


def test_a_variant_is_saved_and_opened(pipe, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    again = TextToImagePipeline.from_pretrained(tmp_path, variant="fp16", low_cpu_mem_usage=False)
    assert torch.equal(images_of(again), images_of(pipe))
    with pytest.raises(ValueError, match="fp32"):
        TextToImagePipeline.from_pretrained(tmp_path, variant="fp32", low_cpu_mem_usage=False)


def test_a_run_folder_opens_as_a_pipeline(pipe, small_run: Path, tmp_path: Path, refused) -> None:
    opened = TextToImagePipeline.from_pretrained(small_run)
    assert torch.equal(images_of(opened), images_of(pipe))
    for name in ("dtype", "torch_dtype"):  # as diffusers calls it, now and before
        half = TextToImagePipeline.from_pretrained(small_run, **{name: torch.bfloat16})
        assert half.unet.dtype == half.text_encoder.dtype == torch.bfloat16
    dtypes = {"unet": torch.bfloat16, "default": torch.float16}
    pipe.save_pretrained(tmp_path)
    for folder in (small_run, tmp_path):
        mixed = TextToImagePipeline.from_pretrained(folder, dtype=dtypes)
        assert (mixed.unet.dtype, mixed.text_encoder.dtype) == (torch.bfloat16, torch.float16)
    only = TextToImagePipeline.from_pretrained(small_run, dtype={"unet": torch.bfloat16})
    assert only.text_encoder.dtype == torch.float32
    with refused(InputError):
        TextToImagePipeline.from_pretrained(small_run, variant="fp16")


def test_copies_give_the_same_images(pipe) -> None:
    wanted = images_of(pipe)
    for again in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert again.unet is not pipe.unet
        assert torch.equal(images_of(again), wanted)


def test_attention_in_slices_gives_the_same_image(pipe) -> None:
    whole = images_of(pipe)
    for size in (1, 2):
        pipe.enable_attention_slicing(slice_size=size)
        torch.testing.assert_close(images_of(pipe), whole, rtol=0, atol=1e-3)


def offload_each_layer(pipe) -> None:
    """What `enable_sequential_cpu_offload` does, which takes a device with a number alone."""
    for part in (pipe.unet, pipe.text_encoder):
        accelerate.cpu_offload(part, "cpu")


@pytest.mark.parametrize(
    "move",
    [
        lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
        offload_each_layer,
        lambda pipe: pipe.enable_group_offload("cpu", offload_type="leaf_level"),
        lambda pipe: pipe.enable_group_offload(
            "cpu", offload_type="block_level", num_blocks_per_group=1
        ),
    ],
    ids=["model", "sequential", "leaves", "blocks"],
)
def test_offloaded_weights_give_the_same_image(pipe, move) -> None:
    """The CPU stands in for a GPU: the hooks are the same. Twice, as they are set for each call."""
    whole = images_of(pipe)
    move(pipe)
    assert torch.equal(images_of(pipe), whole)
    assert torch.equal(images_of(pipe), whole)


def test_offloaded_layers_leave_no_weights_in_memory(pipe) -> None:
    offload_each_layer(pipe)
    images_of(pipe)
    assert {part.device.type for part in (pipe.unet, pipe.text_encoder)} == {"meta"}
    assert pipe.model.device.type == "cpu"


def test_weights_kept_in_eight_bits_are_computed_with_in_sixteen(pipe) -> None:
    """As a network in bfloat16 whose weights were rounded to eight bits."""
    rounded = copy.deepcopy(pipe).to(torch.bfloat16)
    pipe.to(torch.bfloat16)
    pipe.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16
    )
    weights = pipe.unet.state_dict()
    assert torch.float8_e4m3fn in {value.dtype for value in weights.values()}
    rounded.unet.load_state_dict({key: value.bfloat16() for key, value in weights.items()})
    assert torch.equal(images_of(pipe), images_of(rounded))
    assert pipe.model.settings()["dtype"] == "bfloat16"


def test_hooks_of_cpu_offload_say_where_the_network_runs(pipe, monkeypatch) -> None:
    """accelerate keeps weights on the CPU and moves them for a call."""
    assert pipe.model_cpu_offload_seq == "text_encoder->unet->vae"
    freed = []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    images_of(pipe)
    assert freed == [True]
    hook = SimpleNamespace(execution_device="meta")
    monkeypatch.setattr(pipe.unet, "_hf_hook", hook, raising=False)
    assert pipe.model.device.type == "meta"


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of KDPM2
def test_the_schedulers_that_diffusers_takes_for_each_other(pipe) -> None:
    """Those of its enumeration that we follow, one made from the other and from the default."""
    default = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    default.register_to_config(skip_prk_steps=True)
    pipe.scheduler = default
    refused, images = set(), {}
    for one in diffusers.schedulers.KarrasDiffusionSchedulers:
        for before in (default, pipe.scheduler):
            try:
                scheduler = getattr(diffusers, one.name).from_config(before.config)
                pipe.scheduler = scheduler
                images[one.name, before] = images_of(pipe)
            except (InputError, ImportError, ValueError):
                refused.add(one.name)
                pipe.scheduler = default
    assert refused == {
        "DPMSolverSinglestepScheduler",
        "KDPM2DiscreteScheduler",  # these two evaluate between the levels of training
        "KDPM2AncestralDiscreteScheduler",
        "DEISMultistepScheduler",
        "DPMSolverSDEScheduler",
        "EDMEulerScheduler",  # of another process
    }
    assert all(one.shape == (1, 1, 8, 8) and one.isfinite().all() for one in images.values())
    assert {name for name, _ in images} | refused == {
        one.name for one in diffusers.schedulers.KarrasDiffusionSchedulers
    }
