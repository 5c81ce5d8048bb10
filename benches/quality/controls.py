"""Targets of selected.py that a small model can learn from tasks like them, to tell a choice that is no good from a model that
cannot use it: sentiment, topics and paraphrases, of which the pool has many. All were named before anything was measured.

Their examples are rows of the pool of selection.py, so that pool is made first; the controls' own pool is the same without every
task of the same texts. Of a target's examples, the same under each prompt, those at odd places are asked; the inputs of the others
are what is chosen by.
"""

import argparse
import itertools
import json
import os
from functools import partial

import selection
from cells import once

# A target's task in the pool and its prompts there, what tasks of the same texts are called, and the clusters of tasks like it.
SENTIMENT = ["sentiment", "Sentiment Analysis"]
DEFINITION = ["definition, 0 examples"]
CONTROLS = {
    "amazon": (
        "amazon_polarity",
        ["Is_this_review", "convey_negative_or_positive_sentiment", "user_satisfied"],
        ["*amazon*", "source:*amazon*"],
        SENTIMENT,
    ),
    "sst2": (
        "task363_sst2_polarity_classification",
        DEFINITION,
        ["*sst2*", "source:*sst2*", "*rotten_tomato*", "source:*rotten_tomato*"],
        SENTIMENT,
    ),
    "tweets": (
        "task195_sentiment140_classification",
        DEFINITION,
        ["*sentiment140*", "source:*sentiment140*"],
        SENTIMENT,
    ),
    "ag_news": (
        "ag_news",
        ["classify_with_choices", "which_section_choices", "classify_with_choices_question_first"],
        ["*ag_news*", "*agnews*", "source:*ag_news*"],
        ["topic classification", "Text Categorization"],
    ),
    "qqp": ("glue_qqp", ["duplicate", "meaning", "same_thing"], ["*qqp*", "source:*qqp*"], ["paraphrase identification", "Text Matching"]),
}


def within(args):
    """Arguments for the controls, which have a folder of their own below WORK."""
    inside = argparse.Namespace(**vars(args))
    inside.above, inside.work = args, f"{args.work}/controls"
    os.makedirs(inside.work, exist_ok=True)
    return inside


def whole_pool(args):
    """Makes selection.py's pool where it is not there yet."""
    once(f"{args.above.work}/pool.json", partial(selection.build_pool, args.above))


def build_pool(args):
    """Makes the pool without the controls' texts."""
    whole_pool(args)
    patterns = f"{args.work}/left_out.txt"
    with open(patterns, "w", encoding="utf-8") as out:
        out.writelines(pattern + "\n" for _, _, same, _ in CONTROLS.values() for pattern in same)
    return selection.build_pool(args, patterns)


def rows_of(args, target):
    """The rows of each of the target's prompts, whose examples come in one order."""
    task, prompts, _, _ = CONTROLS[target]
    rows = {prompt: [] for prompt in prompts}
    whole_pool(args)
    for row in selection.pool_rows(args.above):
        if row.get("task") == task and row.get("template") in rows:
            rows[row["template"]].append(row)
    answers = [[row["target"] for row in rows[prompt]] for prompt in prompts]
    pairs = set(zip(*answers, strict=True))
    assert len(pairs) == len(set(answers[0])) > 1, f"{target}: the examples of its prompts differ, or have one answer"
    return rows


def labelled(args, target):
    """The examples that are not asked, with their answers, by their distinct inputs."""
    rows = itertools.chain(*(rows[::2] for rows in rows_of(args, target).values()))
    return {row["input"]: {"input": row["input"], "target": row["target"]} for row in rows}


def write_items(args, target):
    """The examples that are asked, under each prompt, with the answers that there are to it."""
    path = f"{args.work}/{target}.items.jsonl"
    with open(path, "w", encoding="utf-8") as out:
        for prompt, rows in rows_of(args, target).items():
            choices = sorted({row["target"] for row in rows})
            for number, row in enumerate(rows[1::2]):
                item = {"id": f"{target}|validation|{prompt}|#{number}", "input": row["input"].strip(), "target": row["target"]}
                out.write(json.dumps({**item, "choices": choices}, ensure_ascii=False) + "\n")
    return path


def kinds(target):
    return CONTROLS[target][3]
