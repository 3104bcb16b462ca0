"""Text to learn by characters: the data set `text`, which is generated, and `text_files`, which a user brings along.

All authors of `text` use the same hundred words, which are made of random syllables, and each has habits of their own
as to which word follows which. So all nodes have something to learn together, spelling, and nodes that hold some
authors only have unlike data.

A sample is a run of characters, and its label is the character that follows each of them. Nothing depends on the trial:
the generated text is always the same.

Must not know: models, nodes. Runs in: the training thread; pure.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpwa.errors import ConfigError
from dpwa.examples.samples import Samples

__all__ = ["ALPHABET", "AUTHORS", "LENGTH", "generated_text", "text_of_files"]

ALPHABET = "abcdefghijklmnopqrstuvwxyz ."
AUTHORS = 10
LENGTH = 64  # characters of a sample

_SEED = 0
_MOST_CHARACTERS = 256  # different ones: a sample holds bytes
_HELD_OUT_OF = 10  # one piece in so many of a file is held out
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
    train, held_out = (
        _samples(part.reshape(-1, LENGTH + 1)) for part in (windows[:, _HELD_OUT:], windows[:, :_HELD_OUT])
    )
    return train, held_out, torch.arange(AUTHORS).repeat_interleave(_TRAIN)


def text_of_files(folder: Path) -> tuple[Samples, Samples, Tensor]:
    """The same for the files *.txt of a folder, each of which counts as an author.

    Samples hold places in the sorted characters of all files. Each tenth run of characters of a file is held out.

    Args:
        folder: of UTF-8 texts.

    Raises:
        ConfigError: there is no text, one is no UTF-8 or too short, or all have more than 256 different characters.
    """
    texts = {path.name: _text_of(path) for path in sorted(folder.glob("*.txt"))}
    if not texts:
        raise ConfigError(
            f"loading text_files: expected files *.txt, one for each author, in {folder.resolve()}, found none; put "
            f"them there, or name the folder that text lies in with --data-dir or in DPWA_DATA_DIR"
        )
    letters = sorted(set().union(*texts.values()))
    if len(letters) > _MOST_CHARACTERS:
        raise ConfigError(
            f"loading text_files: expected at most {_MOST_CHARACTERS} different characters, got {len(letters)} in "
            f"{folder.resolve()}; replace the rare ones"
        )
    place = {letter: number for number, letter in enumerate(letters)}
    pieces = [np.array([place[letter] for letter in text], np.uint8).reshape(-1, LENGTH + 1) for text in texts.values()]
    held_out = [np.arange(len(found)) % _HELD_OUT_OF == _HELD_OUT_OF - 1 for found in pieces]
    authors = [torch.full((int((~held).sum()),), author) for author, held in enumerate(held_out)]
    train = np.concatenate([found[~held] for found, held in zip(pieces, held_out, strict=True)])
    tested = np.concatenate([found[held] for found, held in zip(pieces, held_out, strict=True)])
    return _samples(train), _samples(tested), torch.cat(authors)


def _text_of(path: Path) -> str:
    """What is written in a file, without its end, which fills no piece."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark at the beginning
    except UnicodeDecodeError as error:
        raise ConfigError(f"loading text_files: expected UTF-8 in {path}, got {error}; convert the file") from error
    except OSError as error:
        raise ConfigError(f"loading text_files: {path} cannot be read ({error.strerror}); remove it") from error
    shortest = _HELD_OUT_OF * (LENGTH + 1)
    if len(text) < shortest:
        raise ConfigError(
            f"loading text_files: expected at least {shortest} characters in {path}, got {len(text)}; remove the file "
            f"or add it to another one"
        )
    return text[: len(text) // (LENGTH + 1) * (LENGTH + 1)]


def _samples(pieces: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> Samples:
    """Runs of characters with those that follow, from pieces of shape (count, LENGTH + 1)."""
    flat = torch.from_numpy(pieces.copy())
    return Samples(flat[:, :-1].contiguous(), flat[:, 1:].long().contiguous())


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
