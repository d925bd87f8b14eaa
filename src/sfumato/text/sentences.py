"""English sentences around a noun phrase: captions from which a model learns to find its class in
whatever is asked of it."""

import random
import re
from collections.abc import Sequence
from functools import cache

FRAMES = {
    "request": (
        "draw {}",
        "please draw {}",
        "draw me {}",
        "paint {} for me",
        "can you draw {}",
        "could you please paint {}",
        "would you make {}",
        "make me {}",
        "make {}",
        "give me {}",
        "show me {}",
        "show us {} please",
        "let me see {}",
        "create {}",
        "generate {}",
        "render {}",
        "produce {}",
        "sketch {}",
        "print {}",
        "write {}",
        "I want {}",
        "I need {}",
        "I would like {}",
        "I would love to see {}",
        "we want to look at {}",
        "we are looking for {}",
        "try to draw {}",
        "{}, please",
        "{} please, if you can",
        "bring me {}",
        "find {}",
        "imagine {}",
        "think of {}",
        "it has to be {}",
        "it should look like {}",
    ),
    "description": (
        "this is {}",
        "here is {}",
        "here you can see {}",
        "there is {}",
        "that looks like {}",
        "you can see {} here",
        "we see {}",
        "the picture shows {}",
        "the image contains {}",
        "an image with {} in it",
        "a picture of {}",
        "a photo of {}",
        "a drawing of {}",
        "a sketch of {}",
        "a scan of {}",
        "a close view of {}",
        "an example of {}",
        "{} in the middle of the picture",
        "{} on a sheet of paper",
        "{} on its own",
        "{}, seen from close",
        "{}, and nothing else",
        "{} is what I want to see",
        "{} can be seen",
        "in this image there is {}",
        "somebody made {}",
        "my friend made {}",
        "she gave us {}",
        "he has found {}",
        "they were looking at {}",
        "it is {}",
        "it must be {}",
        "nothing but {}",
        "just {}",
        "only {}",
    ),
    "question": (
        "what does {} look like?",
        "is that {}?",
        "is this really {}?",
        "where is {}?",
        "have you ever seen {}?",
        "can you see {}?",
        "could this be {}?",
        "who made {}?",
        "how would you draw {}?",
        "how do you make {}?",
        "do you know {}?",
        "may I have {}?",
        "will you show me {}?",
        "why is there {}?",
        "isn't it {}?",
        "what about {}?",
    ),
}
"""Sentences with a place for the phrase. They say nothing of what the picture shows."""

OPENINGS = (
    "hello,",
    "hi there,",
    "good morning,",
    "now",
    "well,",
    "next,",
    "today",
    "after that,",
    "as a first try,",
    "for my friend,",
    "if you can,",
    "once more,",
    "thank you,",
    "so,",
    "and",
    "then",
)
ENDINGS = (
    "for me",
    "for my friend",
    "for the whole family",
    "for a book",
    "for school",
    "for a test",
    "as well as you can",
    "as before",
    "again",
    "now",
    "today",
    "thank you",
    "thanks a lot",
    "if that is possible",
    "on the page",
    "on paper",
    "on the left side",
    "in the centre",
    "at the top",
    "with care",
    "without a frame",
    "and make it nice",
    "so that everybody can read it",
    "because I like it",
    "that was made yesterday",
    "like the last time",
    "to hang on the wall",
    "in a simple way",
)
FILLERS = (
    "nice lovely pretty ugly funny strange odd plain simple fancy tiny little small big large huge "
    "tall short wide narrow thin thick fat round square long bold light dark bright pale red green "
    "blue yellow white black grey brown pink golden silver old new young early late fresh dirty "
    "clean cheap perfect broken crooked careful quick slow lazy quiet loud happy sad angry gentle "
    "wild calm famous unknown real digital electric wooden modern ancient soft hard warm cold wet "
    "dry sweet heavy empty full very quite really rather somewhat almost maybe perhaps surely "
    "certainly kindly quickly slowly carefully somewhere sometimes always never often also even "
    "still already together alone mountain river garden house table window paper pencil pen ink "
    "school teacher student child mother father sister brother friend neighbour doctor baker king "
    "queen music summer winter morning evening night sun moon star rain snow fire water earth wood "
    "stone glass bread coffee apple flower tree forest sea beach road bridge city village market "
    "story letter word page corner frame wall screen computer model data sample test group"
)
"""Words that are put anywhere: what they say is not followed, and they change nothing."""
_WORDS = re.compile(r"(?:\{[^}]*\}|\S)+")
"""Words of a phrase; the name of a field may hold spaces."""
_SYLLABLES = "ba ke li mo nu ra se ti vo zu dra fle gri klo plu sta thri wom xen qua ish ert ong"


def frame_words() -> str:
    """All words of the sentences but the fillers, which a model is not to seem to understand."""
    frames = [frame.format("") for kind in FRAMES.values() for frame in kind]
    return " ".join([*frames, *OPENINGS, *ENDINGS])


def with_sentences(
    templates: Sequence[str], phrases: Sequence[str], *, each: int
) -> tuple[str, ...]:
    """`templates` and the sentences around `phrases`, about as many of the one as of the other:
    templates are repeated, since captions are drawn from all alike."""
    if not phrases:
        return tuple(templates)
    sentences = sentences_around(tuple(phrases), each)
    return tuple(templates) * max(1, round(len(sentences) / len(templates))) + sentences


@cache
def sentences_around(phrases: tuple[str, ...], each: int) -> tuple[str, ...]:
    """`each` sentences around every one of `phrases`, which are caption templates: requests,
    descriptions and questions of up to some twenty words, some of them invented.

    They are the same wherever they are made: drawn from the phrase and their number.
    """
    found = []
    for phrase in phrases:
        chosen = random.Random(f"sentences around {phrase}")
        frames = [frame for kind in FRAMES.values() for frame in kind]
        chosen.shuffle(frames)
        found += [_sentence(frames[number % len(frames)], phrase, chosen) for number in range(each)]
    return tuple(found)


def _sentence(frame: str, phrase: str, chosen: random.Random) -> str:
    before, after = frame.split("{}")
    words = [*before.split(), *_WORDS.findall(phrase), *after.split()]
    if chosen.random() < 0.3:
        words = [*chosen.choice(OPENINGS).split(), *words]
    if chosen.random() < 0.4:
        words += chosen.choice(ENDINGS).split()
    for _ in range(chosen.choice((0, 0, 1, 1, 2, 3, 5))):
        filler = chosen.choice(FILLERS.split()) if chosen.random() < 0.7 else _invented(chosen)
        words.insert(chosen.randrange(len(words) + 1), filler)
    text = " ".join(words).replace(" ,", ",").replace(" ?", "?")
    return text if chosen.random() < 0.7 else text[0].upper() + text[1:] if text[0] != "{" else text


def _invented(chosen: random.Random) -> str:
    return "".join(chosen.choice(_SYLLABLES.split()) for _ in range(chosen.choice((1, 2, 2, 3))))
