#!/bin/sh
# The smoke test of both images: the environment has no contradiction, and a model samples.
set -eu
cd "$(mktemp -d)"
sfumato doctor && sfumato sample bundled:mnist "A handwritten digit 7"
