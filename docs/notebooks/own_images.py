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
# # Lesson 3: your own images
#
# Any folder of images will do, with a text file beside each image, or a subfolder for each class. So that this lesson
# runs anywhere, it first draws a few hundred images: coloured circles and squares. Give `DATA` the name of your folder
# in place of it.

# %%
from pathlib import Path

from PIL import Image, ImageDraw

import sfumato

DATA = Path("runs/lesson-shapes")
OUT = "runs/lesson-own-images"
IMAGES = 24_000

# %% [markdown]
# ## Images and captions
#
# `red-circle-0.png` has its caption in `red-circle-0.txt`.

# %%
COLOURS = {"red": "#c0392b", "green": "#1e8449", "blue": "#2471a3", "yellow": "#d4ac0d"}
DATA.mkdir(parents=True, exist_ok=True)
for colour, code in COLOURS.items():
    for shape in ("circle", "square"):
        for index in range(40):
            picture = Image.new("RGB", (16, 16), "white")
            x, y, side = index % 5, index // 5 % 5, 7 + index % 4
            draw = ImageDraw.Draw(picture)
            outline = draw.ellipse if shape == "circle" else draw.rectangle
            outline((x, y, x + side, y + side), fill=code)
            name = DATA / f"{colour}-{shape}-{index}"
            picture.save(name.with_suffix(".png"))
            name.with_suffix(".txt").write_text(f"a {colour} {shape}")

# %% [markdown]
# ## Train
#
# The preset `small` takes the size, the channels and the captions from the images. A tenth of them is held out, for
# measuring. Read the warnings: the text encoder that ships with sfumato is small, and says which words it does not know.
# `text={"encoder": "openai/clip-vit-base-patch32"}` downloads one that knows more.

# %%
run = sfumato.train(
    "small",
    data=str(DATA),
    out=OUT,
    training={"images": IMAGES, "sample_every_images": IMAGES // 3},
)

# %% [markdown]
# ## Sample
#
# A caption from the training images, and one seed in all colours.

# %%
run.model.sample(["a red circle"], seeds=range(8), guidance=3)

# %%
run.model.sample([f"a {colour} square" for colour in COLOURS], seeds=[3] * len(COLOURS), guidance=3)

# %% [markdown]
# ## Take it elsewhere
#
# The exported folder is a diffusers pipeline: it runs without sfumato, and gives the same images.

# %%
run.model.export("runs/lesson-own-images-exported")
