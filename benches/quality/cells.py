"""What the studies of this folder have in common: cells that are run once, and their lines."""

import fnmatch
import json
import os
import platform
import subprocess
import sys
from datetime import date

HERE = os.path.dirname(os.path.abspath(__file__))


def sidenote(args, *command):
    """What a command of the program `args.sidenote`, run in `args.work`, reports."""
    command = [args.sidenote, *map(str, command), "--json", "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=args.work)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return json.loads(done.stdout)


def once(path, measure):
    """What `measure` gave when it first went through, kept in the file `path`: half of it is never taken for all."""
    if not os.path.exists(path):
        result = measure()
        with open(path + ".part", "w") as out:
            json.dump(result, out)
        os.replace(path + ".part", path)
    with open(path) as file:
        return json.load(file)


def arguments(parser, *paths, program=True):
    """Parses the command line, with what all studies take, the program too unless they run none; `paths` are made independent of
    where it was given."""
    if program:
        parser.add_argument("--sidenote", required=True, help="the program")
    parser.add_argument("--cells", default="*", help="only the cells whose names are like this")
    args = parser.parse_args()
    for name in (*paths, "sidenote"):
        if getattr(args, name, None):
            setattr(args, name, os.path.abspath(getattr(args, name)))
    os.makedirs(args.work, exist_ok=True)
    return args


def run_cells(study, pattern, cells, key, table):
    """Runs those cells (a name, the values of `key`, and what gives their line) that are like `pattern` and of which
    STUDY.jsonl has no line yet, and writes `table` of all lines to STUDY.md."""
    results = os.path.join(HERE, f"{study}.jsonl")
    lines = [json.loads(line) for line in open(results)] if os.path.exists(results) else []
    there = {tuple(line.get(name) for name in key) for line in lines}
    for name, values, measure in cells:
        if values in there or not fnmatch.fnmatch(name, pattern):
            continue
        print(name, file=sys.stderr, flush=True)
        machine = f"{platform.machine()}, {os.cpu_count()} processors"
        lines.append({**dict(zip(key, values)), **measure(), "date": date.today().isoformat(), "machine": machine})
        with open(results, "a") as out:
            out.write(json.dumps(lines[-1]) + "\n")
    with open(os.path.join(HERE, f"{study}.md"), "w") as out:
        out.write(table(lines))
