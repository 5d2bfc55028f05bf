"""Real text without a download: Python's own documentation topics, as characters and as batches of streams."""

from __future__ import annotations

import lzma
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_CHARACTERS = 4000
HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Corpus:
    """A text to learn from, and one that no model sees while it learns."""

    train: str
    held_out: str


def python_docs() -> Corpus:
    """The topics of `pydoc_data.topics` (what `help("CLASSES")` prints), split into training and held-out text.

    Topics repeat each other ("compound" contains "if", "while" and "for"), so every paragraph is kept once: otherwise
    the held-out text would contain what was learnt. Every tenth block of whole paragraphs is held out.
    """
    from pydoc_data.topics import topics

    paragraphs = (paragraph for name in sorted(topics) for paragraph in topics[name].split("\n\n"))
    blocks = list(in_blocks(without_repeats(paragraphs), BLOCK_CHARACTERS))
    held_out = blocks[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    train = [block for i, block in enumerate(blocks) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    return Corpus("\n\n".join(train), "\n\n".join(held_out))


def without_repeats(paragraphs: Iterable[str]) -> Iterator[str]:
    """Each paragraph the first time it comes, compared without regard to line breaks and indentation."""
    seen = set()
    for paragraph in paragraphs:
        words = tuple(paragraph.split())
        if words and words not in seen:
            seen.add(words)
            yield paragraph.strip("\n")


def in_blocks(paragraphs: Iterable[str], characters: int) -> Iterator[str]:
    """Join paragraphs, in order, into blocks of at least `characters` characters (the last may be shorter)."""
    block: list[str] = []
    size = 0
    for paragraph in paragraphs:
        block.append(paragraph)
        size += len(paragraph)
        if size >= characters:
            yield "\n\n".join(block)
            block, size = [], 0
    if block:
        yield "\n\n".join(block)


class Vocabulary:
    """The characters of a text, numbered by their order in Unicode. Number 0 stands for any other character."""

    UNKNOWN = "\N{REPLACEMENT CHARACTER}"

    def __init__(self, text: str) -> None:
        self.characters = [self.UNKNOWN, *sorted(set(text) - {self.UNKNOWN})]
        self._numbers = {character: i for i, character in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """The numbers of a text's characters, int64 [len(text)]."""
        return torch.tensor([self._numbers.get(character, 0) for character in text], dtype=torch.int64)

    def decode(self, numbers: Tensor) -> str:
        """The text of numbers [any length]."""
        return "".join(self.characters[i] for i in numbers.tolist())


def streams(numbers: Tensor, batch_size: int) -> Tensor:
    """Cut numbers [N] into `batch_size` contiguous streams that are read side by side: [N // batch_size, batch_size].

    Raises ValueError where the text is too short for each stream to hold a character and its successor.
    """
    length = numbers.numel() // batch_size
    if length < 2:
        raise ValueError(f"{numbers.numel()} characters are too few for {batch_size} streams")
    return numbers[: length * batch_size].view(batch_size, length).t().contiguous()


def chunks(columns: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk streams [N, B] in chunks of at most `length` steps: (characters [T, B], their successors [T, B])."""
    last = columns.shape[0] - 1
    for start in range(0, last, length):
        stop = min(start + length, last)
        yield columns[start:stop], columns[start + 1 : stop + 1]


def unigram_bits(corpus: Corpus) -> float:
    """Bits per held-out character of a model that knows only how frequent each character of the training text is."""
    counts = Counter(corpus.train)
    # One count for every character that could come, so that an unseen one costs many bits, not infinitely many.
    total = len(corpus.train) + len(counts) + 1
    bits = (-math.log2((counts[character] + 1) / total) for character in corpus.held_out)
    return sum(bits) / len(corpus.held_out)


def xz_bits(corpus: Corpus) -> float:
    """Bits per held-out character of xz at its strongest, which has compressed the training text just before."""

    def size(text: str) -> int:
        return len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))

    return 8 * (size(corpus.train + corpus.held_out) - size(corpus.train)) / len(corpus.held_out)
