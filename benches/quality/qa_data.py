"""The questions of qa.py: samples of four test sets, examples to learn from, and what counts as an answer."""

import json
import os
import random
import re
import string

SETS = {
    "nq": "oqa_nq_open/NQ-open.dev.jsonl",
    "webquestions": "oqa_webquestions/dpr.wq.test.jsonl",
    "squad": "oqa_squad_open/dpr.squad.test.jsonl",
    "trec": "oqa_curatedtrec/dpr.curated.test.jsonl",
}
# Questions of a test set that are looked for, and of these the first that readers get.
SAMPLE, READ = 500, 50
# Examples to learn from, as many of each set.
SHOTS = 64


def normalise(text):
    """As the official script of SQuAD does it."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


class Answers:
    """What counts as an answer to one question."""

    def __init__(self, answers, patterns):
        self.patterns = [re.compile(a, re.IGNORECASE) for a in answers] if patterns else None
        self.words = [] if patterns else [words for words in map(normalise, answers) if words]

    def held(self, text):
        if self.patterns:
            return any(pattern.search(text) for pattern in self.patterns)
        words = normalise(text)
        return any(words[i : i + len(a)] == a for a in self.words for i in range(len(words) - len(a) + 1))

    def exact(self, said):
        if self.patterns:
            return any(pattern.fullmatch(said.strip()) for pattern in self.patterns)
        return normalise(said) in self.words


def shuffled(folder, name):
    """All lines of a test set, in the order in which they are drawn."""
    with open(os.path.join(folder, SETS[name]), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    random.Random(0).shuffle(lines)
    return lines


def write(path, records):
    part = f"{path}.{os.getpid()}.part"
    with open(part, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    os.replace(part, path)
    return path


def questions(args, name):
    """The sample of a set: its file in the form of `eval qa`, and its answers."""
    lines = shuffled(args.questions, name)[:SAMPLE]
    records = [{"id": f"{name}-{i}", "question": line["question"], "answers": line["answer"]} for i, line in enumerate(lines)]
    return write(os.path.join(args.work, f"{name}.jsonl"), records), [Answers(line["answer"], name == "trec") for line in lines]


def all_lessons(args):
    """The examples to learn from, of every set as many, none with the words of a question that is asked.

    NQ's and WebQuestions' are of the splits to train on. SQuAD-open has none here: its own are those of its test set
    that are not in the sample. CuratedTREC's answers are patterns; those that are a plain text can be written.
    """
    read = lambda *path: open(os.path.join(args.questions, *path), encoding="utf-8")
    with read("oqa_nq_open", "dpr.nq.dev.jsonl") as file:
        nq = [(line["question"], line["answer"]) for line in map(json.loads, file)]
    with read("oqa_webquestions", "trainmodel.json") as file:
        web = [(line["qText"], line["answers"]) for line in json.load(file)]
    squad = [(line["question"], line["answer"]) for line in shuffled(args.questions, "squad")[SAMPLE:]]
    with read("oqa_curatedtrec", "curated-train.tsv") as file:
        trec = [(line[2], line[3].split("|")) for line in (line.rstrip("\n").split("\t") for line in file)]
    trec = [(question, [a for a in answers if re.fullmatch(r"[\w ,.'-]+", a)]) for question, answers in trec]
    asked = {tuple(normalise(line["question"])) for name in SETS for line in shuffled(args.questions, name)[:SAMPLE]}
    records = []
    for name, known in zip(SETS, (nq, web, squad, trec)):
        random.Random(1).shuffle(known)
        fit = ((q, a) for q, a in known if a and tuple(normalise(q)) not in asked)
        of_set = [{"id": f"{name}-{i}", "question": q, "answers": a} for i, (q, a) in zip(range(SHOTS // len(SETS)), fit)]
        records.extend(of_set)
    return records


def lessons(args, shots=SHOTS):
    """The file of the first `shots` examples, as many of each set, in the order in which they are drawn."""
    of_each = shots // len(SETS)
    records = [line for line in all_lessons(args) if int(line["id"].rsplit("-", 1)[1]) < of_each]
    return write(os.path.join(args.work, "lessons.jsonl" if shots == SHOTS else f"lessons-{shots}.jsonl"), records)
