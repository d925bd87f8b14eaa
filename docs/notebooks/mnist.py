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
# # Lesson 2: MNIST, and what guidance does
#
# The package carries a model that was trained on MNIST, so this lesson begins with sampling. Then it trains one for a
# shorter time, and compares the two on the same seeds.

# %%
import sfumato

DATA = "ylecun/mnist"  # a data set of the Hugging Face Hub, or a folder that has it
OUT = "runs/lesson-mnist"
IMAGES = 60_000  # one pass over the data
COUNT = 100  # images for each measured figure

# %% [markdown]
# ## A model that is there
#
# `bundled:mnist` has 3.1 million parameters. It takes 20 evaluations of its network for an image, instead of 1,000:
# the sampler `DPMSolver++` solves the same equation in larger steps.

# %%
model = sfumato.load("bundled:mnist")
model.sample(["A handwritten digit 3"], seeds=range(8))

# %% [markdown]
# ## What guidance does
#
# `with_` gives the same model with other settings. From w = 0 to w = 5 the digits become what was asked for, then all
# alike: guidance buys fidelity with diversity.

# %%
prompts = [f"A handwritten digit {digit}" for digit in range(10)]
model.with_(guidance=0).sample(prompts, seeds=range(10))

# %%
model.with_(guidance=1).sample(prompts, seeds=range(10))

# %%
model.with_(guidance=5).sample(prompts, seeds=range(10))

# %% [markdown]
# ## Train one
#
# `mnist-fast` is the preset that the bundled model was trained with, for three passes. With a tracker, the run can be
# looked at with `tensorboard --logdir runs` too.

# %%
run = sfumato.train(
    "mnist-fast",
    data=DATA,
    out=OUT,
    training={"images": IMAGES, "sample_every_images": IMAGES // 3, "trackers": ["tensorboard"]},
)

# %%
run.model.sample(prompts, seeds=range(10))

# %% [markdown]
# ## Compare
#
# Both models get the same captions and the same seeds, so the difference is measured in pairs, which needs far fewer
# images than two measurements apart. A difference whose interval has zero in it is none that was shown.

# %%
comparison = sfumato.compare(model, run.model, data=DATA, count=COUNT)
print(comparison)
