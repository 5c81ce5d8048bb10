"""Chooses the extract of Simple English Wikipedia: two kinds of articles, train and held-out."""

import hashlib
import html
import json

import numpy as np

import text_overlap
import wiki_text

SHARDS = [f"train-{number:02}.jsonl" for number in range(4)]
SMALLEST, LARGEST = 600, 6000  # bytes of an article's text
TEMPLATED = 0.2  # share of 8-grams that other articles hold, from which an article is templated
SAME = 0.9  # share of 8-grams in one train article, above which a held-out article is a copy
TRAIN_ORDINARY = 2100
HELD_OUT = 120  # of each kind


def rank(article, use):
    """The place of an article in the hash order for one use."""
    return hashlib.sha256(f"sidenote {use} {article['id']}".encode()).digest()


def read(folder):
    """The source's articles, repaired, without those unsound, and each text once."""
    articles, seen, count = [], set(), 0
    for shard in SHARDS:
        with open(folder / shard, encoding="utf-8") as lines:
            for line in lines:
                count += 1
                record = json.loads(line)
                title = html.unescape(record["title"])
                text = wiki_text.clean(title, record["text"])
                if text and text not in seen and wiki_text.is_sound(text):
                    seen.add(text)
                    articles.append({"id": record["id"], "title": title, "text": text})
    return articles, count


def closed(grams, numbers):
    """The largest set of `numbers` in which each shares TEMPLATED of its 8-grams with the others."""
    while True:
        kept = numbers[text_overlap.share_elsewhere([grams[n] for n in numbers]) >= TEMPLATED]
        if len(kept) == len(numbers):
            return kept
        numbers = kept


def split(articles, grams, numbers, train_limit=None):
    """Splits one kind at random by hash; a held-out article that is a copy of a train one is dropped.

    Returns the train numbers, the held-out numbers, and how many were dropped."""
    order = sorted(numbers, key=lambda n: rank(articles[n], "split"))
    spare = HELD_OUT // 4  # replaces what is dropped
    candidates, train = order[: HELD_OUT + spare], order[HELD_OUT + spare :][:train_limit]
    shares, _ = text_overlap.share_in_nearest([grams[n] for n in candidates], [grams[n] for n in train])
    held_out = [n for n, share in zip(candidates, shares) if share <= SAME]
    dropped = sum(share > SAME for share in shares)
    train += held_out[HELD_OUT:] if train_limit is None else []
    return train, held_out[:HELD_OUT], int(dropped)


def extract(folder):
    """The train and held-out records of the extract, and the statistics of the choice."""
    articles, source_count = read(folder)
    grams = text_overlap.grams([a["text"] for a in articles])
    size = np.array([len(a["text"].encode()) for a in articles])
    elsewhere = text_overlap.share_elsewhere(grams)
    fits = (size >= SMALLEST) & (size <= LARGEST)
    templated_candidates = np.flatnonzero(fits & (elsewhere >= TEMPLATED))
    kinds = {
        "ordinary": split(articles, grams, np.flatnonzero(fits & (elsewhere < TEMPLATED)), TRAIN_ORDINARY),
        "templated": split(articles, grams, closed(grams, templated_candidates)),
    }
    every_train = [n for kind in kinds.values() for n in kind[0]]
    statistics = {
        "source_articles": source_count,
        "sound_articles": len(articles),
        "templated_candidates": len(templated_candidates),
    }
    parts = {"train": [], "heldout": []}
    for kind, (train, held_out, dropped) in kinds.items():
        statistics[f"{kind}_heldout_dropped_as_copies"] = dropped
        for part, numbers in (("train", train), ("heldout", held_out)):
            parts[part] += [{**articles[n], "kind": kind} for n in numbers]
            statistics[f"{kind}_{part}_articles"] = len(numbers)
            statistics[f"{kind}_{part}_text_bytes"] = int(size[numbers].sum())
        own = [grams[n] for n in held_out]
        anywhere = text_overlap.share_in(own, [grams[n] for n in every_train])
        nearest, _ = text_overlap.share_in_nearest(own, [grams[n] for n in every_train])
        for name, shares in (("train", anywhere), ("nearest_train_article", nearest)):
            statistics[f"{kind}_heldout_8grams_in_{name}"] = {
                "mean": round(float(shares.mean()), 3),
                "quartiles": [round(float(q), 3) for q in np.percentile(shares, [25, 50, 75])],
                "largest": round(float(shares.max()), 3),
            }
    for records in parts.values():
        records.sort(key=lambda record: rank(record, "order"))
    return parts, statistics
