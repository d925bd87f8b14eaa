"""Tests of sfumato."""

import os

os.environ["TQDM_DISABLE"] = "1"  # as the command line does; torch imports tqdm, which looks once
