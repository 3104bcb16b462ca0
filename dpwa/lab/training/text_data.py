"""The data set `text`: sentences of ten authors, generated, so that there is nothing to download.

All authors use the same hundred words, which are made of random syllables, and each has habits of their own as to which
word follows which. So all nodes have something to learn together, spelling, and nodes that hold some authors only have
unlike data.

A sample is a run of characters, and its label is the character that follows each of them. Nothing depends on the trial:
the text is always the same.

Must not know: models, nodes. Runs in: the training thread; pure.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dpwa.examples.samples import Samples

__all__ = ["ALPHABET", "AUTHORS", "LENGTH", "generated_text"]

ALPHABET = "abcdefghijklmnopqrstuvwxyz ."
AUTHORS = 10
LENGTH = 64  # characters of a sample

_SEED = 0
_WORDS = 100
_SYLLABLES = (1, 2, 3)
_HELD_OUT, _TRAIN = 100, 500  # samples of each author

# Which of an author's followers of a word comes next; the rest of the time any word does.
_FOLLOWERS = (0.6, 0.2, 0.1)
_END_OF_SENTENCE = 0.15


def generated_text() -> tuple[Samples, Samples, Tensor]:
    """Samples for training, held-out ones, and the author of each of the former.

    Samples hold places in `ALPHABET`: bytes, shape (count, LENGTH); labels are int64 of the same shape.
    """
    draws = np.random.default_rng(_SEED)
    words = [_word(draws) for _ in range(_WORDS)]
    windows = np.stack([_windows(words, draws) for _ in range(AUTHORS)])
    parts = []
    for part in (windows[:, _HELD_OUT:], windows[:, :_HELD_OUT]):
        flat = torch.from_numpy(part.reshape(-1, LENGTH + 1).copy())
        parts.append(Samples(flat[:, :-1].contiguous(), flat[:, 1:].long().contiguous()))
    return parts[0], parts[1], torch.arange(AUTHORS).repeat_interleave(_TRAIN)


def _word(draws: np.random.Generator) -> str:
    syllables = _SYLLABLES[int(draws.random() * len(_SYLLABLES))]
    return "".join(
        letters[int(draws.random() * len(letters))] for _ in range(syllables) for letters in ("bcdfghklmnprst", "aeiou")
    )


def _windows(words: list[str], draws: np.random.Generator) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """What one author writes, in pieces of LENGTH + 1 characters."""
    followers = (draws.random((_WORDS, len(_FOLLOWERS))) * _WORDS).astype(int)
    size = (_TRAIN + _HELD_OUT) * (LENGTH + 1)
    odds = np.cumsum(_FOLLOWERS)
    pieces, written, word = [], 0, 0
    while written < size:
        choice, free, end = draws.random(3)
        kind = int(np.searchsorted(odds, choice))
        word = int(followers[word, kind]) if kind < len(_FOLLOWERS) else int(free * _WORDS)
        pieces.append(words[word] + (". " if end < _END_OF_SENTENCE else " "))
        written += len(pieces[-1])
    text = "".join(pieces)[:size]
    return np.array([ALPHABET.index(letter) for letter in text], np.uint8).reshape(-1, LENGTH + 1)
