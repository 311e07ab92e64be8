"""The unlabelled sentences that recoveries learn from, one a line in one file; labels and scores are dropped.

Usage: tools/recoveries/texts.py SHARED_DATA OUT.txt
Sentences of more than 18 words are left out, but for those of STS-B: a step costs what its tokens cost.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from edgeredux.data import python_docs

_MOST_WORDS = 18
_LABELLED = ("stsa.binary.train", "stsa.binary.dev", "rt-polarity.all", "subj.all", "TREC.train.all")


def sentences(data: Path) -> Iterator[str]:
    """Both columns of STS-B train (without scores), SST-2, MR, SUBJ, TREC (without labels), Python's documentation."""
    with (data / "data-stsb" / "stsb-en-train.csv").open(encoding="utf-8", newline="") as handle:
        for row in csv.reader(handle):
            yield from row[:2]
    for sentence in (*_labelled(data), *python_docs()):
        if len(sentence.split()) <= _MOST_WORDS:
            yield sentence


def _labelled(data: Path) -> Iterator[str]:
    for name in _LABELLED:
        for line in (data / "data-sentences" / name).read_text(encoding="latin-1").split("\n"):
            _, _, sentence = line.partition(" ")
            yield sentence


def write(data: Path, out: Path) -> int:
    """Write each different sentence once, in the order above; the number of them."""
    unique = dict.fromkeys(" ".join(sentence.split()) for sentence in sentences(data))
    unique.pop("", None)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(unique) + "\n", encoding="utf-8")
    return len(unique)


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), Path(sys.argv[2])), "sentences")
