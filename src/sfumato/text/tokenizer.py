"""The bundled CLIP's tokenizer: a byte-level BPE made from captions."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sfumato.text.sentences import FILLERS, frame_words

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
POSITIONS = 77
"""Most tokens of a prompt, as in CLIP."""

WIKIART = (
    "Abstract Expressionism, Action Painting, Analytical Cubism, Art Nouveau Modern, Baroque, "
    "Color Field Painting, Contemporary Realism, Cubism, Early Renaissance, Expressionism, "
    "Fauvism, High Renaissance, Impressionism, Mannerism Late Renaissance, Minimalism, "
    "Naive Art Primitivism, New Realism, Northern Renaissance, Pointillism, Pop Art, "
    "Post Impressionism, Realism, Rococo, Romanticism, Symbolism, Synthetic Cubism, Ukiyo-e"
)
COMMON = (
    "and at for from in is it its near of off on or over that the this to under with without I "
    "you he she we they his her my your who what where man woman boy girl child baby person "
    "people face hand eye head hair body friend family animal cow sheep pig mouse bear lion tiger "
    "elephant monkey fish snake turtle insect butterfly spider duck chicken owl eagle flower rose "
    "tree leaf grass forest garden fruit apple orange banana bread cake cup table chair bed lamp "
    "book pen paper box bag shirt dress shoe hat ring clock phone computer car bus train bicycle "
    "motorcycle boat road street bridge house building room door window wall roof tower church "
    "castle city town village farm field mountain hill river lake sea beach sand rock stone snow "
    "rain cloud sky sun moon star fire water wood metal glass gold silver red green blue yellow "
    "purple pink brown black white grey dark light bright pale colourful big small large little "
    "tall short long round square old young new happy sad angry quiet calm wild beautiful cold "
    "warm hot wet dry front back side left right top bottom middle behind between above below "
    "standing sitting walking running flying swimming eating sleeping holding looking playing "
    "riding wearing two three many photo picture painting portrait landscape drawing sketch image "
    "style artist oil watercolour letter word sign symbol icon logo cartoon shape line circle "
    "triangle pattern background morning evening night day spring summer autumn winter close far "
    "view scene landscape about after again all also always another any anything away be been "
    "before being best better both but by came can come could did do does done down each end "
    "enough even ever every few first follow found full gave get give go good got great had has "
    "have having held help here him how if just keep kind know last later least leave less let "
    "life like live long look lot love made make many may maybe me mean might more most much must "
    "need never next no nothing now number often once only order other our out own part place "
    "play point put quite rather read really right run said same saw say second see seem seen "
    "send set several shall she should show side since so some someone something soon start state "
    "stay still stop such sure take tell than thank their them then there these thing think those "
    "though thought through time today together too took toward try turn until up upon us use "
    "used very wait want was way well went were when where which while whole why will wish within "
    "work world would write year yes yesterday yet tomorrow week month hour minute home office "
    "shop street train station holiday birthday party present gift money game sport team ball cat "
    "dog bird horse frog deer ship truck airplane automobile plane lorry numeral figure digit "
    "handwriting handwritten chalk blackboard board sheet poster canvas museum gallery exhibition "
    "master modern classic history century ancient colour bright shadow portrait still nude "
    "religious abstract scientist engineer farmer soldier sailor worker writer singer dancer "
    "player customer guest visitor colleague boss aunt uncle grandmother grandfather cousin "
    "husband wife daughter son nephew niece neighbourhood country island valley desert winter "
    "storm wind weather garden path field corner centre edge surface background foreground close "
    "distance detail large enormous gigantic tiny elegant messy neat shaky smooth rough clear "
    "blurry sharp faded funny serious wonderful terrible important"
)
"""Frequent words of captions: people's own prompts take one token a word, not one a byte."""


def vocabulary_corpus(captions: Sequence[str]) -> list[str]:
    """What the bundled tokenizer learns its merges from: captions, art styles, common words, and
    those of the sentences around captions."""
    styles = [f"A painting in the style of {style}" for style in WIKIART.split(", ")]
    # Captions count more, so that their words are whole before the vocabulary is full.
    sentences = [frame_words(), *FILLERS.split()]
    return [*(list(captions) * 10), *(styles * 3), *sentences, *COMMON.split()]


def train_tokenizer(corpus: Sequence[str], *, vocab_size: int) -> "CLIPTokenizer":
    """A CLIP tokenizer whose merges are learnt on `corpus`.

    All 256 byte symbols and their end-of-word forms are in the vocabulary, so that any UTF-8
    string can be encoded; the start token is 0, the end token (and padding) is 1.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    byte_symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [BOS, EOS, *byte_symbols, *(symbol + "</w>" for symbol in byte_symbols)]
    words: dict[tuple[str, ...], int] = {}
    splitter = CLIPTokenizer().backend_tokenizer
    for text in corpus:
        normal = splitter.normalizer.normalize_str(text)
        for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normal):
            symbols = (*word[:-1], word[-1] + "</w>")
            words[symbols] = words.get(symbols, 0) + 1
    merges: list[tuple[str, str]] = []
    while len(vocabulary) < vocab_size:
        pairs: dict[tuple[str, str], int] = {}
        for symbols, count in words.items():
            for pair in pairwise(symbols):
                pairs[pair] = pairs.get(pair, 0) + count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))  # ties by name: the same everywhere
        merges.append(best)
        vocabulary.append("".join(best))
        words = {_merged(symbols, best): count for symbols, count in words.items()}
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(dict.fromkeys(vocabulary))},
        merges=merges,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=EOS,
        model_max_length=POSITIONS,
    )


def _merged(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)
