# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lesson 1: digits from captions, in minutes
#
# A diffusion model turns noise into an image, step by step, and a caption says which image. This lesson trains one
# from nothing on 897 real handwritten digits that come with scikit-learn, samples from it, and measures it. It needs no
# download and no GPU.

# %%
import sfumato

OUT = "runs/lesson-digits"
IMAGES = 100_000  # minutes on two cores; a tenth of that shows the course of it
COUNT = 100  # images for each measured figure

# %% [markdown]
# ## Train
#
# A *preset* is a whole experiment: data, network, diffusion process, optimizer. `digits` has a U-Net of 1.6 million
# parameters; `sfumato presets show digits` explains each setting. Below the bar is the loss: how far the predicted noise
# is from the true one. It falls quickly and then slowly. The pictures are samples of the averaged network, always from
# the same noise, so what changes between two of them is the network.
#
# Interrupt the kernel whenever you like. The same cell goes on from the last checkpoint, and ends with the same weights
# as a run that nobody interrupted.

# %%
run = sfumato.train(
    "digits", out=OUT, training={"images": IMAGES, "sample_every_images": IMAGES // 5}
)

# %% [markdown]
# ## Sample
#
# Each seed is one noise, and so one image: alone or in a batch, today or tomorrow. `guidance` is the scale *w* of
# classifier-free guidance: 0 ignores the caption, 1 follows the model, more exaggerates what the caption asks for.

# %%
sevens = run.model.sample(["A handwritten digit 7"], seeds=range(8), guidance=3)
sevens

# %% [markdown]
# The same eight seeds without the caption: whatever digit the noise leans towards.

# %%
run.model.sample(["A handwritten digit 7"], seeds=range(8), guidance=0)

# %% [markdown]
# One digit each, from captions in words that the model was trained on.

# %%
run.model.sample(
    [f"A handwritten digit {digit}" for digit in range(10)], seeds=range(10), guidance=3
)

# %% [markdown]
# ## Measure
#
# Looking is not enough. A separate classifier, trained on images that the model never saw, says how often the asked-for
# digit is what came out. The value comes with its 95 % interval: with few images it is wide.

# %%
card = sfumato.evaluate(run.model, count=COUNT, guidance_scales=[1, 3])
for row in card.rows:
    print(row.title, row.class_accuracy)

# %% [markdown]
# **Try**: a caption that names no digit; `seeds=[7] * 10` with ten captions (what stays is what the noise decides);
# twice the images, by changing `IMAGES` and running the first cells again.
