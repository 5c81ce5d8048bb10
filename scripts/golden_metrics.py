#!/usr/bin/env python3
"""Makes tests/data/metrics/golden.jsonl: predictions and answers with the exact match and F1 of SQuAD v1.1's official
script (its normalisation, written out below) and the ROUGE F-measures of Google's rouge-score.

    pip install rouge-score
    python3 scripts/golden_metrics.py
"""

import collections
import json
import random
import re
import string
from pathlib import Path

from rouge_score import rouge_scorer

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "metrics" / "golden.jsonl"

PAIRS = [
    ("The Beatles", ["Beatles", "The Fab Four"]),
    ("the", ["a"]),
    ("", [""]),
    ("", ["something"]),
    ("An apple a day", ["apple day", "the apple, a day!"]),
    ("3.14", ["314", "3 14"]),
    ("U.S.A.", ["USA"]),
    ("  spaces\tand\nlines ", ["spaces and lines"]),
    ("Zürich", ["ZÜRICH", "Zurich"]),
    ("well-known", ["wellknown", "well known"]),
    ("the–end", ["end"]),
    ("“quoted”", ["quoted"]),
    ("theatre", ["atre", "the atre"]),
    ("a_b", ["ab"]),
    ("ΟΔΟΣ", ["οδος", "οδοσ"]),
    ("日本の首都は東京です", ["東京"]),
    ("in 1912, June 23", ["23 June 1912", "1912"]),
    ("It was built in the year 1889", ["1889", "in 1889"]),
    ("an the a", ["", "x"]),
    ("don't stop", ["dont stop", "do not stop"]),
    ("one two two three", ["two two", "two one"]),
    ("x\u00a0y", ["x y"]),
    ("x\u001fy", ["x y"]),
    ("café", ["cafe", "café"]),
    ("the cat sat on the mat", ["the cat was sitting on a mat", "mat the on sat cat the"]),
]
WORDS = ["a", "the", "An", "moon", "Moon,", "sun", "(sun)", "star's", "1912", "19-12", "of", "and", "é", "x.y"]


def normalise(text):
    remove_articles = lambda text: re.sub(r"\b(a|an|the)\b", " ", text)
    white_space_fix = lambda text: " ".join(text.split())
    excluded = set(string.punctuation)
    remove_punctuation = lambda text: "".join(c for c in text if c not in excluded)
    return white_space_fix(remove_articles(remove_punctuation(text.lower())))


def f1(prediction, answer):
    prediction, answer = normalise(prediction).split(), normalise(answer).split()
    same = sum((collections.Counter(prediction) & collections.Counter(answer)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction), same / len(answer)
    return 2 * precision * recall / (precision + recall)


def main():
    rng = random.Random(0)
    say = lambda: " ".join(rng.choices(WORDS, k=rng.randint(0, 9)))
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with OUT.open("w") as out:
        for prediction, answers in PAIRS + [(say(), [say() for _ in range(2)]) for _ in range(60)]:
            rouge = {
                kind: max(scorer.score(answer, prediction)[kind].fmeasure for answer in answers)
                for kind in ["rouge1", "rouge2", "rougeL"]
            }
            line = {
                "prediction": prediction,
                "answers": answers,
                "normalised": normalise(prediction),
                "exact_match": max(float(normalise(prediction) == normalise(answer)) for answer in answers),
                "f1": max(f1(prediction, answer) for answer in answers),
                **rouge,
            }
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
