import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from sfumato.base.errors import InputError
from sfumato.text.encoder import TextCondition, TextConfig, load_text_encoder
from sfumato.text.prompts import PromptBank, TruncatedPromptWarning, warn_of_cut_prompts


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder(TextConfig(encoder="bundled", max_tokens=8))


def test_tokens_are_the_last_hidden_state_after_the_final_norm(encoder) -> None:
    condition = encoder.encode(["A handwritten digit 3", ""])
    assert condition.tokens.shape == (2, 8, 512)
    assert condition.mask.tolist() == [[True] * 6 + [False] * 2, [True] * 2 + [False] * 6]
    ids = encoder.tokenizer(
        ["A handwritten digit 3", ""], padding="max_length", max_length=8, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        output = encoder.model(input_ids=ids, output_hidden_states=True)
        normed = encoder.model.final_layer_norm(output.hidden_states[-1])
    torch.testing.assert_close(condition.tokens.float(), normed, rtol=2e-3, atol=2e-3)


def test_the_encoder_is_frozen_and_the_same_every_time(encoder) -> None:
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    again = load_text_encoder(TextConfig(encoder="bundled", max_tokens=8))
    assert again.identity == encoder.identity
    assert encoder.identity.startswith("bundled sha256:")


def test_building_the_encoder_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    load_text_encoder(TextConfig(encoder="bundled", max_tokens=8))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prompt_has_the_same_bits_whatever_is_encoded_with_it(encoder) -> None:
    prompts = [f"A handwritten digit {digit}" for digit in range(10)] * 2
    together = encoder.encode(prompts).tokens
    alone = torch.cat([encoder.encode([prompt]).tokens for prompt in prompts])
    assert torch.equal(together, alone)


def test_digits_differ_and_any_utf8_can_be_encoded(encoder) -> None:
    tokens = encoder.encode([f"A handwritten digit {digit}" for digit in range(10)]).tokens
    assert len({bytes(row.numpy()) for row in tokens}) == 10
    ids = encoder.tokenizer("größe 数字 🎨").input_ids
    assert ids[0] == 0
    assert ids[-1] == 1
    assert 1 not in ids[1:-1]  # the end token doubles as "unknown"; nothing fell into it


def test_a_folder_serves_as_encoder(encoder, tmp_path) -> None:
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    other = load_text_encoder(TextConfig(encoder=str(tmp_path), max_tokens=8))
    prompts = ["A handwritten digit 7"]
    assert torch.equal(other.encode(prompts).tokens, encoder.encode(prompts).tokens)


def test_an_encoder_that_cannot_be_had_names_three_ways_out(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        load_text_encoder(TextConfig(encoder="no-such/encoder"))
    for way in ("download", "text.encoder=FOLDER", "text.encoder=bundled"):
        assert way in caught.value.mend


@pytest.mark.parametrize("max_tokens", [1, 78])
def test_token_length_out_of_range(max_tokens: int) -> None:
    with pytest.raises(InputError, match="2 to 77"):
        load_text_encoder(TextConfig(max_tokens=max_tokens))


# The bank -----------------------------------------------------------------------------------------


class CountingEncoder:
    name = identity = "counting"
    dim, max_tokens = 4, 3

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, prompts):
        self.encoded += prompts
        values = torch.tensor([[float(len(prompt))] for prompt in prompts])
        tokens = values[:, :, None].expand(-1, 3, 4).half()
        return TextCondition(tokens=tokens, mask=torch.ones(len(prompts), 3, dtype=torch.bool))

    def cut(self, prompts):
        return {}


def test_each_distinct_prompt_is_encoded_once_and_null_is_the_empty_string() -> None:
    encoder = CountingEncoder()
    bank = PromptBank(encoder, ["one", "three", "one", ""])
    assert encoder.encoded == ["", "one", "three"]
    assert bank.index(["three", "", "one"]).tolist() == [2, PromptBank.NULL_INDEX, 1]
    assert bank.tokens(bank.index(["three"])).dtype == torch.float32
    assert bank.tokens(torch.tensor([0, 2]))[:, 0, 0].tolist() == [0.0, 5.0]


def test_above_the_bound_the_bank_lies_in_a_file_and_serves_the_same() -> None:
    prompts = [f"prompt {'x' * (index % 50)} {index}" for index in range(3000)]
    inside = PromptBank(CountingEncoder(), prompts)
    outside = PromptBank(CountingEncoder(), prompts, max_memory_bytes=1000)
    assert inside.in_memory
    assert not outside.in_memory
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 3001, 500))
    assert torch.equal(inside.tokens(rows), outside.tokens(rows))


def test_a_cut_prompt_is_named_with_what_it_lost(encoder) -> None:
    with pytest.warns(TruncatedPromptWarning, match=r"lost 'blue ink'") as caught:
        PromptBank(encoder, ["A handwritten digit 3 7 in blue ink", "A handwritten digit 3"])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PromptBank(encoder, ["A handwritten digit 3"])


def test_a_long_or_odd_prompt_does_not_flood_the_warning() -> None:
    with pytest.warns(TruncatedPromptWarning) as caught:
        warn_of_cut_prompts({"word " * 500: "word " * 490, "a\x1b[31m\nb": "c"}, 8)
    message = str(caught[0].message)
    assert len(message) < 400
    assert message.isprintable()


@pytest.mark.soak
def test_100000_captions_of_77_tokens_within_a_gigabyte() -> None:
    """In a process of its own: its peak memory, torch and transformers included; minutes."""
    script = """
import json, resource, time
import torch
from sfumato.text.encoder import TextConfig, load_text_encoder
from sfumato.text.prompts import PromptBank

encoder = load_text_encoder(TextConfig(encoder="bundled", max_tokens=77))
captions = [f"a picture of the number {n}, drawn with a pen" for n in range(100_000)]
started = time.monotonic()
bank = PromptBank(encoder, captions)
built = time.monotonic() - started
rows = torch.randint(len(bank), (50, 64), generator=torch.Generator().manual_seed(0))
started = time.monotonic()
for batch in rows:
    served = bank.tokens(batch)
seconds = (time.monotonic() - started) / len(rows)
last = captions[int(rows[-1, -1]) - 1]
print(json.dumps({
    "equal": torch.equal(served[-1], encoder.encode([last]).tokens[0].float()),
    "rows": len(bank),
    "built_seconds": round(built),
    "batch_of_64_seconds": round(seconds, 4),
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["rows"] == 100_001
    assert found["equal"]
    assert found["peak_bytes"] < 1e9
