"""Whether training data chosen for a task makes a model better at it than chance does (Stage B), cell by cell.

    python selected.py WORK DATA --base MODEL --sidenote PROGRAM [--methods NAMES] [--steps N] [--cells PATTERN]

WORK and DATA are those of selection.py, which makes the pool and says what it leaves out; DATA also has
`inst_promptsource_templates`. MODEL is what is tuned, such as SmolLM2-135M-Instruct's GGUF file. Needs jinja2, numpy, pyyaml.

A cell is a target, a method and a seed: the method chooses 1 % of the pool for the target by the target's unlabelled inputs
(those of selection.py, which are of training sets), an adapter is trained on the choice, and the model is asked the target's
development set (of FewGLUE's repository) under three of promptsource's prompts, named in TASKS before anything was measured.
WinoGrande, HellaSwag (at which small models are better than chance) and ANLI are asked by the rows of T0's evaluation (DATA's
`recross`), one an example: the first that lists the choices, or whose template says them.
The answer is the choice with the highest log-probability, summed over its tokens. `ranking` is what accuracy does not see where a
model always gives the same answer: how often a choice has more over the others in an example where it is right than in one where it
is wrong, mean over choices and prompts; chance is a half. `calibrated` is the accuracy after each choice's mean over the examples is
taken off its log-probability (`batch_calibrated` of `eval tasks`), which looks at no answer; only under prompts whose choices are always the same.
`nats` are those of the right answer, mean over examples and prompts. `untuned` is the model as it is. A method
with `-level` behind it is the method with --level-answers. The random methods know no target: their adapter is trained once a seed. Two know more than a method may, and say how far one could get:
`own-kind` draws from the tasks of the target's own kind (selection.py's, by the categories of Super-NaturalInstructions), and
`own-task` trains on the target's labelled examples of DEFT's few-shot files, of its training set. Every cell has the same number of tokens a step
(RECIPE) and the same steps, 60 where nothing else is said, which is less than once through the choice; cells of other --steps are a table of their own.
The seed is that of the adapter, the order, and the methods that draw.

The targets of controls.py, kinds of task that the model can learn, are asked in the same way out of a pool of their own: where a
choice helps there and not here, it is the model that cannot use it.

The result is a line of selected.jsonl beside this file, appended as soon as it is there; what is there is not run again. `right` has
for each prompt a digit for each example. At the end selected.md is written from all lines: accuracies over distinct examples, and
what each method has over random-balanced, with the interval of a paired bootstrap over examples and seeds.

The machine may be busy: only seconds suffer.
"""

import argparse
import itertools
import json
import os
import random
import re
import statistics
import time
from functools import partial

import controls
import numpy
import selection
from cells import arguments, once, run_cells, sidenote
from controls import CONTROLS
from selection import FRACTION, METHODS, TARGETS, VECTORS, pool_rows, write_target

UNTUNED, BASELINE = "untuned", "random-balanced"
LEVEL, CALIBRATED = "-level", "batch_calibrated"
# Those whose choice depends on the seed, and on it alone.
BLIND = ["random", BASELINE, BASELINE + LEVEL]
LEVELLED = [method + LEVEL for method in ("deft", "rds+", "task-aware", BASELINE)]
OWN_KIND, OWN_TASK = "own-kind", "own-task"
DRAWN = [*BLIND, "dsir", OWN_KIND]
SEEDS = [0, 1, 2]
# A target's file of development examples, its templates, its labels in the templates' order, and the prompts.
TASKS = {
    "rte": (
        "RTE",
        "rte",
        ["entailment", "not_entailment"],
        ["GPT-3 style", "does this imply", "must be true"],
    ),
    "cb": (
        "CB",
        "cb",
        ["entailment", "contradiction", "neutral"],
        ["GPT-3 style", "does this imply", "MNLI crowdsource"],
    ),
    "copa": ("COPA", "copa", [0, 1], ["choose", "plausible_alternatives", "C1 or C2? premise, so/because…"]),
    "wic": ("WiC", "wic", [False, True], ["GPT-3-prompt-with-label", "same_sense", "affirmation_true_or_false"]),
    "wsc": ("WSC", "wsc.fixed", [False, True], ["GPT-3 Style", "does the pronoun refer to", "the pronoun refers to"]),
}
# Examples of a development set that are asked, a fixed draw where there are more.
EXAMPLES = 250
# Tokens of a question and of an answer, together 128.
QUESTION, ANSWER = 104, 24
RECIPE = {
    "adapter": {
        "method": "lora",
        "rank": 8,
        "alpha": 16.0,
        "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    },
    "precision": "bf16",
    "batch_tokens": 1024,
    "learning_rate": 1e-3,
}
RESAMPLES = 10000
WHY = """What this says. On the targets nothing helps much: not what a method chooses, nor labelled examples of the target itself, at four times the
steps either. On the controls labelled examples help much, so that recipe and measurement work, and a model of this size learns such
tasks and not those targets. There a choice of tasks of the right kind raises how well the model ranks the right answers (ranking)
without its being right more often: it leans to one answer, and to another one with another seed. In this pool some tasks have one answer only (`pool build`
names imdb, rotten_tomatoes, dbpedia_14; trec's is empty), since P3's small files are the beginnings of sorted ones, and methods that choose few tasks
choose much of these; with level answers (-level) they are no worse than the balanced draw. Where the leaning is taken off the model's answers too (calibrated), the tasks
of the right kind are worth several points more than the balanced draw, which is then no better than no tuning.
"""


def templates(path):
    """promptsource's templates by name: (jinja, answer choices)."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, _, node: loader.construct_mapping(node, deep=True))
    with open(path, encoding="utf-8") as file:
        read = yaml.load(file, Loader)
    return {one["name"]: (one["jinja"], one["answer_choices"]) for one in read["templates"].values()}


def named_endings(row, _):
    """HellaSwag's rows that list four endings ask for what is before them."""
    return row["input"].split("\n\n(a)")[0], re.findall(r"^\([a-d]\) (.*)$", row["input"], re.MULTILINE)


def named_options(row, _):
    """WinoGrande's rows that list their two options."""
    return row["input"], re.findall(r"^- (.*)$", row["input"], re.MULTILINE)


def known_answers(row, known):
    """ANLI's rows, with the answers of the template that they name."""
    return row["input"], known[row["id"].split("|")[2]][1].split("|||")


# T0's evaluation files of a target, how many choices there are, what of a row is asked with which choices, and templates.
AS_T0 = {
    "winogrande": (["winogrande-winogrande_xl"], 2, named_options, None),
    "hellaswag": (["hellaswag"], 4, named_endings, None),
    "anli": (["anli_r1", "anli_r2", "anli_r3"], 3, known_answers, "anli"),
}


ASKED = [*TASKS, *AS_T0]


def as_t0_is_asked(args, target):
    """The first row of each example in T0's evaluation that shows the choices, files in turns."""
    files, size, read, name = AS_T0[target]
    known = name and templates(f"{args.data}/inst_promptsource_templates/{name}/templates.yaml")
    found = []
    for file in files:
        items = {}
        with open(f"{args.data}/recross/eval/{file}.test.jsonl", encoding="utf-8") as rows:
            for row in map(json.loads, rows):
                question, choices = read(row, known)
                choices = [choice.strip() for choice in choices]
                if len(choices) == size and row["targets"][0] in choices:
                    number = row["id"].split("|")[-1]
                    item = {"id": f"{target}|validation|as T0 is asked|{file}{number}", "input": question, "target": row["targets"][0]}
                    items.setdefault(number, {**item, "choices": choices})
        found.append(items.values())
    return [item for turn in itertools.zip_longest(*found) for item in turn if item][:EXAMPLES]


def write_items(args, target):
    """The target's development examples under its prompts."""
    if target in CONTROLS:
        return controls.write_items(args, target)
    import jinja2

    path = f"{args.work}/{target}.items.jsonl"
    if target in AS_T0:
        with open(path, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in as_t0_is_asked(args, target))
        return path

    folder, name, labels, prompts = TASKS[target]
    with open(f"{args.data}/eval_fewglue32/{folder}/val.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    numbers = range(len(rows))
    if len(rows) > EXAMPLES:
        numbers = sorted(random.Random(0).sample(numbers, EXAMPLES))
    known = templates(f"{args.data}/inst_promptsource_templates/super_glue/{name}/templates.yaml")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    with open(path, "w", encoding="utf-8") as out:
        for prompt in prompts:
            text, answers = (environment.from_string(part) for part in known[prompt])
            for number in numbers:
                row = dict(rows[number])
                # WSC's spans are in an object of their own.
                row.update(row["target"] if isinstance(row.get("target"), dict) else {})
                row["label"] = labels.index(row["label"])
                choices = [choice.strip() for choice in answers.render(row).split("|||")]
                asked, right = text.render({**row, "answer_choices": choices}).split("|||")
                item = {"id": f"{target}|validation|{prompt}|#{number}", "input": asked.strip(), "target": right.strip()}
                out.write(json.dumps({**item, "choices": choices}, ensure_ascii=False) + "\n")
    return path


def choose(args, target, method, seed):
    """The file with the rows that a method chooses."""
    home = controls if target in CONTROLS else selection
    pool = once(f"{args.work}/pool.json", partial(home.build_pool, args))
    labelled = home.labelled(args, target)
    examples, _ = write_target(args, target, labelled)
    out = f"{args.work}/{target}.{method}.{f'{seed}.' if method in DRAWN else ''}chosen.jsonl"
    n = round(FRACTION * pool["kept"])
    if method in (OWN_KIND, OWN_TASK):
        kinds = controls.kinds(target) if target in CONTROLS else TARGETS[target][1]
        of_kind = (row for row in pool_rows(args) if row.get("cluster") in kinds)
        rows = list(labelled.values() if method == OWN_TASK else of_kind)
        random.Random(seed).shuffle(rows)
        with open(out, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:n])
    elif not os.path.exists(out):
        name = method.removesuffix(LEVEL)
        options = ["--vectors", VECTORS[name]] if name in VECTORS else []
        options += ["--level-answers"] if name != method else []
        sidenote(args, "select", "pool", "--method", name, "--target", examples, "-n", n, "--out", out, "--seed", seed, *options)
    return out


def tune(args, target, method, seed):
    """The adapter's folder, and what its training measured last."""
    steps = args.steps
    out = f"{args.work}/tuned/{'any' if method in BLIND else target}.{method}.{seed}.{steps}"
    if not os.path.exists(f"{out}/model"):
        os.makedirs(os.path.dirname(out), exist_ok=True)
        adapter = "\n".join(f"{name} = {json.dumps(value)}" for name, value in RECIPE["adapter"].items())
        with open(f"{out}.toml", "w", encoding="utf-8") as file:
            file.write(
                f'kind = "tune"\nout = "{out}"\nbase = "{args.base}"\n[tune]\ndata = ["{choose(args, target, method, seed)}"]\n'
                f"max_question_tokens = {QUESTION}\nmax_answer_tokens = {ANSWER}\n[adapter]\n{adapter}\n[training]\nseed = {seed}\n"
                f'steps = {steps}\nwarmup_steps = {steps // 10}\nschedule = "linear"\nbatch_tokens = {RECIPE["batch_tokens"]}\n'
                f'precision = "{RECIPE["precision"]}"\n'
                f"learning_rate = {RECIPE['learning_rate']}\nweight_decay = 0.0\nevaluate_every = {steps}\n"
                f"checkpoint_every = {steps}\n"
            )
        resume = ["--resume"] if os.path.exists(out) else []
        sidenote(args, "train", f"{out}.toml", *resume)
    with open(f"{out}/metrics.jsonl") as file:
        return f"{out}/model", json.loads(file.readlines()[-1])


def measure(args, target, method, seed):
    items, answers = write_items(args, target), f"{args.work}/{target}.{method}.{seed}.{args.steps}.answers.jsonl"
    options, learnt = [], {}
    if method != UNTUNED:
        adapter, last = tune(args, target, method, seed)
        options = ["--adapter", adapter]
        learnt = {"tuning_seconds": round(last["seconds"]), "targets": last["tokens"], "loss": round(last["loss"], 4)}
    begun = time.monotonic()
    command = ["eval", "tasks", args.base, "--data", items, "--out", answers, "--max-question-tokens", QUESTION + ANSWER]
    (found,) = sidenote(args, *command, *options)["tasks"]
    right, calibrated, asked = {}, {}, {}
    with open(answers, encoding="utf-8") as file:
        for line in map(json.loads, file):
            right[line["template"]] = right.get(line["template"], "") + str(int(line["scores"]["sum"]))
            if CALIBRATED in line["scores"]:
                calibrated[line["template"]] = calibrated.get(line["template"], "") + str(int(line["scores"][CALIBRATED]))
            asked.setdefault(line["template"], []).append((line["right"], [choice["logprob"] for choice in line["choices"]]))
    spread = found["scores"]["sum"]
    if calibrated:
        learnt["calibrated"] = round(found["scores"][CALIBRATED]["mean"], 4)
        learnt["right_calibrated"] = calibrated
    return {
        **{name: round(spread[name], 4) for name in ("mean", "median", "lowest", "highest")},
        **{name: round(found["scores"][name]["mean"], 4) for name in ("per_token", "pmi")},
        "ranking": round(statistics.fmean(map(ranking, asked.values())), 4),
        "nats": round(-statistics.fmean(scores[right] for answers in asked.values() for right, scores in answers), 4),
        "examples": found["examples"],
        **learnt,
        "asking_seconds": round(time.monotonic() - begun),
        "right": right,
    }


def ranking(asked):
    """How often a choice has more over the best of the others where it is right than where it is wrong, mean over choices."""
    shares = []
    for choice in range(max(len(scores) for _, scores in asked)):
        over = ([], [])
        for right, scores in asked:
            over[right == choice].append(scores[choice] - max(scores[:choice] + scores[choice + 1 :]))
        if all(over):
            wrong, right = map(numpy.array, over)
            shares.append(((right[:, None] > wrong).mean() + (right[:, None] >= wrong).mean()) / 2)
    return statistics.fmean(shares)


def by_example(line, right):
    """The share of prompts under which each example was answered rightly."""
    return [statistics.fmean(map(int, digits)) for digits in zip(*line[right].values())]


def difference(cells, method, targets, right="right"):
    """What `method` has over the baseline, mean over targets, with the middle 95 % of a bootstrap over seeds and examples;
    nothing where no target has both. `right` is the field that says what was answered rightly."""
    pairs = {}
    for target in targets:
        for seed in SEEDS:
            mine = cells.get((target, method, 0 if method == UNTUNED else seed), {})
            other = cells.get((target, BASELINE, seed), {})
            if right in mine and right in other:
                differences = [a - b for a, b in zip(by_example(mine, right), by_example(other, right))]
                pairs.setdefault(target, {})[seed] = differences
    if not pairs:
        return None
    chance = numpy.random.default_rng(0)
    whole, means = 0.0, numpy.zeros(RESAMPLES)
    for seeds in pairs.values():
        each = numpy.array(list(seeds.values()))
        counts = [chance.multinomial(size, numpy.full(size, 1 / size), RESAMPLES) / size for size in each.shape]
        whole += each.mean() / len(pairs)
        means += ((counts[0] @ each) * counts[1]).sum(1) / len(pairs)
    return whole, *numpy.percentile(means, [2.5, 97.5]), len(pairs)


def ranking_over(cells, method, targets):
    """How much more than the baseline `method` ranks, mean over the targets of which both are known, and how many these are."""
    pairs = {}
    for target, seed in itertools.product(targets, SEEDS):
        mine, other = cells.get((target, method, 0 if method == UNTUNED else seed), {}), cells.get((target, BASELINE, seed), {})
        if "ranking" in mine and "ranking" in other:
            pairs.setdefault(target, []).append(mine["ranking"] - other["ranking"])
    return (statistics.fmean(map(statistics.fmean, pairs.values())), len(pairs)) if pairs else None


def table(lines):
    parts = []
    for among, said in ((ASKED, ""), (CONTROLS, "Controls (controls.py). ")):
        here = [line for line in lines if line["target"] in among]
        for steps in sorted({line["steps"] for line in here if line["method"] != UNTUNED}):
            tuned = [line for line in here if line["steps"] == steps]
            asked = {line["target"] for line in tuned}
            untuned = [line for line in here if line["method"] == UNTUNED and line["target"] in asked]
            parts.append(said + part(steps, untuned + tuned, list(among)))
    return "\n".join([*parts, WHY])


def part(steps, lines, among):
    """The table of the cells with so many steps, of the targets `among`."""
    cells = {(line["target"], line["method"], line["seed"]): line for line in lines}
    methods = list(dict.fromkeys([UNTUNED, *METHODS, *LEVELLED, OWN_KIND, OWN_TASK, *(line["method"] for line in lines)]))
    methods = [method for method in methods if any(line["method"] == method for line in lines)]
    sizes = {line["target"]: line["examples"] for line in lines}
    targets = [target for target in among if target in sizes]
    header = ["| | " + " | ".join(f"{target} ({sizes[target]})" for target in targets) + " |", "|---|" + "---|" * len(sizes)]
    recipe = f"{steps} steps of {RECIPE['batch_tokens']} tokens at a rate of {RECIPE['learning_rate']:g}"
    text = [
        f"Written by `selected.py`, whose head says how. {RECIPE['adapter']['method'].upper()} of rank {RECIPE['adapter']['rank']}, {recipe}.",
        "",
        "Accuracy in percent over distinct examples, mean over prompts (lowest and highest prompt) and seeds (how many):",
        "",
        *header,
    ]
    for method in methods:
        row = []
        for target in targets:
            mine = [line for line in lines if (line["target"], line["method"]) == (target, method)]
            mean, low, high = (statistics.fmean(line[name] for line in mine) * 100 if mine else 0 for name in ("mean", "lowest", "highest"))
            row.append(f"{mean:.1f} ({low:.1f}-{high:.1f}; {len(mine)})" if mine else "")
        text.append(f"| {method} | " + " | ".join(row) + " |")
    for name, digits in (("calibrated", 3), ("ranking", 3), ("nats", 2)):
        if not any(name in line for line in lines):
            continue
        text += ["", f"{name.capitalize()}, mean over seeds (how many):", "", *header]
        for method in methods:
            row = []
            for target in targets:
                found = [line[name] for line in lines if (line["target"], line["method"]) == (target, method) and name in line]
                row.append(f"{statistics.fmean(found):.{digits}f} ({len(found)})" if found else "")
            if any(row):
                text.append(f"| {method} | " + " | ".join(row) + " |")
    text += [
        "",
        f"What each has over {BASELINE}, in points, over the targets and seeds that have both; in brackets the middle 95 % of "
        f"{RESAMPLES} paired resamples of examples and seeds. The last columns are what it has over it in ranking, times a hundred, and of "
        "how many targets that is known, and the same for what is calibrated, with its interval:",
        "",
        "| | mean over targets | targets | " + " | ".join(targets) + " | ranking | calibrated |",
        "|---|---|---|---|---|" + "---|" * len(sizes),
    ]

    def points(found):
        return f"{100 * found[0]:+.1f} [{100 * found[1]:+.1f}, {100 * found[2]:+.1f}]" if found else ""

    for method in methods:
        found = difference(cells, method, among)
        if found and method != BASELINE:
            each = [points(difference(cells, method, [target])) for target in targets]
            ranks = ranking_over(cells, method, among)
            each.append(f"{100 * ranks[0]:+.1f} ({ranks[1]})" if ranks else "")
            calibrated = difference(cells, method, among, "right_calibrated")
            each.append(f"{points(calibrated)} ({calibrated[3]})" if calibrated else "")
            text.append(f"| {method} | {points(found)} | {found[3]} | " + " | ".join(each) + " |")
    return "\n".join(text) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("data")
    parser.add_argument("--base", required=True, help="the model that is tuned")
    parser.add_argument("--methods", help="which, with commas between; otherwise those of selection.py, some of them levelled, and the two that know more")
    parser.add_argument("--steps", type=int, default=60)
    args = arguments(parser, "work", "data", "base")
    methods = [UNTUNED, *(args.methods.split(",") if args.methods else [*METHODS, *LEVELLED, OWN_KIND, OWN_TASK])]
    cells = [
        (
            f"{target}-{method}-{seed}",
            (target, method, seed, 0 if method == UNTUNED else args.steps),
            partial(measure, controls.within(args) if target in CONTROLS else args, target, method, seed),
        )
        for seed in SEEDS
        for target in [*ASKED, *CONTROLS]
        for method in methods
        if method != UNTUNED or seed == SEEDS[0]
    ]
    run_cells("selected", args.cells, cells, ["target", "method", "seed", "steps"], table)


if __name__ == "__main__":
    main()
