"""Word 8-grams of documents and how much of them other documents hold.

An 8-gram is a run of eight words (`\\w+`, lower case), and is kept as a 64-bit
hash; a document's 8-grams are counted once each.
"""

import re

import numpy as np

LENGTH = 8
WORD = re.compile(r"\w+")


def grams(texts):
    """The sorted distinct 8-gram hashes of each text, as uint64 arrays."""
    vocabulary = {}
    result = []
    for text in texts:
        words = [vocabulary.setdefault(w, len(vocabulary) + 1) for w in WORD.findall(text.lower())]
        ids = np.array(words, dtype=np.uint64)
        count = max(len(ids) - LENGTH + 1, 0)
        value = np.zeros(count, np.uint64)
        for k in range(LENGTH):
            value = value * np.uint64(0x100000001B3) + ids[k : k + count]
            value ^= value >> np.uint64(29)
            value *= np.uint64(0xBF58476D1CE4E5B9)
        result.append(np.unique(value))
    return result


def share_elsewhere(documents):
    """For each document, the share of its 8-grams that at least one other of `documents` holds."""
    every = np.concatenate(documents)
    distinct, counts = np.unique(every, return_counts=True)
    repeated = distinct[counts > 1]
    return np.array([np.isin(d, repeated, assume_unique=True).mean() if len(d) else 0.0 for d in documents])


def share_in(documents, others):
    """For each document, the share of its 8-grams that at least one of `others` holds."""
    held = np.unique(np.concatenate(others))
    return np.array([np.isin(d, held, assume_unique=True).mean() if len(d) else 0.0 for d in documents])


def share_in_nearest(documents, others):
    """For each document, the share of its 8-grams in the one of `others` that holds most of them,
    and that one's number (-1 where none holds any)."""
    every = np.concatenate(others)
    owner = np.repeat(np.arange(len(others)), [len(o) for o in others])
    order = np.argsort(every, kind="stable")
    every, owner = every[order], owner[order]
    shares, nearest = np.zeros(len(documents)), np.full(len(documents), -1)
    for number, document in enumerate(documents):
        first = np.searchsorted(every, document, "left")
        last = np.searchsorted(every, document, "right")
        found = [owner[a:b] for a, b in zip(first, last) if b > a]
        if found:
            counts = np.bincount(np.concatenate(found))
            nearest[number] = int(counts.argmax())
            shares[number] = counts.max() / len(document)
    return shares, nearest
