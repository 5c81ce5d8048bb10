"""The table (ann.md) and the curves (ann.svg) of benches/results/ann.json.

    python ann_report.py [FOLDER]
"""

import json
import math
import os
import sys

TARGETS = [0.95, 0.99]
PLAIN_HNSW = ("hnswlib", "faiss HNSW", "usearch")
COLOURS = {
    "sidenote QG32": "#c0392b",
    "sidenote RaBitQ": "#e67e22",
    "sidenote Flat": "#b59b00",
    "sidenote HNSW16": "#d98880",
    "rabitqlib SymphonyQG": "#1a5276",
    "scann": "#117864",
    "hnswlib": "#6c3483",
    "faiss HNSW": "#2e86c1",
    "faiss HNSW SQ8": "#85929e",
    "usearch": "#28b463",
    "usearch bf16": "#82e0aa",
}


def colour(system):
    fitting = [name for name in COLOURS if system == name or system.startswith(name + " ")]
    return COLOURS[max(fitting, key=len)] if fitting else "#000000"


def family(system):
    """The system's name without its version."""
    return system if system.startswith("sidenote") else system.rsplit(" ", 1)[0]


def frontier(rows):
    """(recall, qps) of the rows that no other row beats in both, by rising recall."""
    best, points = 0.0, []
    for row in sorted(rows, key=lambda row: (-row["recall_at_10"], -row["qps"])):
        if row["qps"] > best:
            best = row["qps"]
            points.append((row["recall_at_10"], row["qps"]))
    return points[::-1]


def at(rows, recall):
    """Queries a second at a recall, between measured points in proportion to log qps; None if never reached."""
    points = frontier(rows)
    for (r0, q0), (r1, q1) in zip([(-1, None), *points], points):
        if r1 >= recall:
            if q0 is None or r1 == recall:
                return q1
            part = (recall - r0) / (r1 - r0)
            return math.exp(math.log(q0) * (1 - part) + math.log(q1) * part)
    return None


def unique(values):
    return list(dict.fromkeys(values))


def number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def mega(value):
    return "-" if value is None else number(value / 1e6, 1)


def batch(row):
    return row.get("calls") == "batch"


def speeds(rows, n):
    """The table of queries a second at the target recalls, and the ratios that are the targets."""
    rows = [row for row in rows if row["n"] == n and "recall_at_10" in row]
    groups = unique((row["queries"], row["threads"]) for row in rows)
    lines = [f"### {n:,} vectors: queries a second, all queries in one call", ""]
    head = [f"{queries}, {threads} thr., recall {target:.2f}" for queries, threads in groups for target in TARGETS]
    lines += ["| system | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    found = {}
    for system in unique(row["system"] for row in rows):
        cells = []
        for queries, threads in groups:
            mine = [r for r in rows if (r["system"], r["queries"], r["threads"]) == (system, queries, threads)]
            for target in TARGETS:
                value = at([row for row in mine if batch(row)], target)
                found[system, queries, threads, target] = value
                cells.append(number(value))
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    lines += ["", "Between measured points, log(qps) is interpolated; - means that the recall was not reached.", ""]

    lines += [f"### {n:,} vectors: the best of Sidenote against the peers", ""]
    lines += ["| queries | threads | recall | Sidenote | to best plain HNSW | to SymphonyQG | to scann |", "|---|--:|--:|--:|--:|--:|--:|"]
    for queries, threads in groups:
        for target in TARGETS:

            def best(wanted):
                fitting = [
                    (value, system)
                    for (system, *key), value in found.items()
                    if key == [queries, threads, target] and value is not None and wanted(family(system))
                ]
                return max(fitting, default=(None, None))

            ours, which = best(lambda name: name.startswith("sidenote"))
            cells = []
            for peer in [
                lambda name: name.startswith(PLAIN_HNSW),
                lambda name: name.startswith("rabitqlib"),
                lambda name: name.startswith("scann"),
            ]:
                theirs, name = best(peer)
                if ours is None or theirs is None:
                    cells.append("-")
                else:
                    cells.append(f"{ours / theirs:.2f} ({family(name)} {theirs:,.0f})")
            which = f"{which.removeprefix('sidenote ')} {ours:,.0f}" if ours else "-"
            lines.append(f"| {queries} | {threads} | {target:.2f} | {which} | " + " | ".join(cells) + " |")
    return lines + [""]


def targets(rows, n):
    """What was aimed at, one thread, beside what was measured: the better of Sidenote's kinds for speed."""
    mine = [row for row in rows if row["n"] == n]
    raw = n * mine[0]["dim"] * 4

    def best(wanted, queries, target):
        speeds = []
        for system in unique(row["system"] for row in mine if wanted(family(row["system"]))):
            here = [r for r in mine if r["system"] == system and batch(r)]
            here = [r for r in here if (r["queries"], r["threads"]) == (queries, 1)]
            speeds.append((at(here, target) or 0, system))
        return max(speeds, default=(0, ""))

    lines = [f"### {n:,} vectors: aims (speed on one thread)", "", "| aim | measured | met |", "|---|--:|---|"]
    for queries in unique(row["queries"] for row in mine if "queries" in row):
        for target in TARGETS:
            ours, _ = best(lambda name: name.startswith("sidenote"), queries, target)
            for what, times, wanted in [
                ("best plain HNSW", 3, lambda name: name.startswith(PLAIN_HNSW)),
                ("SymphonyQG", 1, lambda name: name.startswith("rabitqlib")),
                ("scann", 1, lambda name: name.startswith("scann")),
            ]:
                theirs, _ = best(wanted, queries, target)
                if ours and theirs:
                    met = "yes" if ours >= times * theirs else "no"
                    aim = f"{queries}, recall {target}: {times} x {what}"
                    lines.append(f"| {aim} | {ours / theirs:.2f} x | {met} |")
    graph = next((row for row in mine if row["system"].startswith("sidenote QG")), None)
    hnswlib = next((row for row in mine if row["system"].startswith("hnswlib")), None)
    if graph and hnswlib:
        ratio = hnswlib["build_seconds"] / graph["build_seconds"]
        lines.append(f"| {graph['system']}: build 2 x as fast as hnswlib | {ratio:.2f} x | {'yes' if ratio >= 2 else 'no'} |")
    for row in {row["system"]: row for row in mine if row["system"].startswith("sidenote")}.values():
        part = row["anon_bytes"] / raw
        lines.append(f"| {row['system']}: own memory under 1/4 of the vectors | {part:.4f} | {'yes' if part < 0.25 else 'no'} |")
    return lines + [""]


def costs(rows, n):
    """The table of building, bytes, memory and opening."""
    rows = [row for row in rows if row["n"] == n]
    raw = n * rows[0]["dim"] * 4
    lines = [f"### {n:,} vectors: building, memory, opening ({mega(raw)} MB of raw vectors)", ""]
    threads = rows[0]["build_threads"]
    lines += [
        f"| system | build s ({threads} threads) | build CPU s | build peak MB | disk MB | own memory MB | mapped MB "
        "| open to first answer ms, warm | cold | process start to first answer ms, warm | cold |",
        "|---|" + "---:|" * 10,
    ]
    for system in unique(row["system"] for row in rows):
        row = next(row for row in rows if row["system"] == system)
        cells = [number(row["build_seconds"], 1), number(row["build_cpu_seconds"], 1), mega(row["build_peak_bytes"])]
        cells += [mega(row["disk_bytes"]), mega(row["anon_bytes"]), mega(row["file_bytes"])]
        cells += [number(row["open_ms"], 1), number(row["open_cold_ms"], 1)]
        cells += [number(row["process_ms"], 0), number(row["process_cold_ms"], 0)]
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return lines + [""]


def spread(rows):
    """How far the rounds lie apart: the middle of (highest - lowest) / median."""
    parts = sorted((row["qps_highest"] - row["qps_lowest"]) / row["qps"] for row in rows if "qps" in row)
    return parts[len(parts) // 2] if parts else 0.0


def singles(rows, n):
    """Sidenote one query a call, beside all in one call."""
    mine = [r for r in rows if r["n"] == n and r.get("calls") == "single"]
    if not mine:
        return []
    lines = [f"### {n:,} vectors: Sidenote with one query a call, one thread", ""]
    lines += ["| system | queries | recall 0.95 | recall 0.99 |", "|---|---|--:|--:|"]
    for system, queries in unique((row["system"], row["queries"]) for row in mine):
        here = [row for row in mine if (row["system"], row["queries"]) == (system, queries)]
        lines.append(f"| {system} | {queries} | {number(at(here, 0.95))} | {number(at(here, 0.99))} |")
    return lines + [""]


def table(result):
    rows = result["rows"]
    lines = ["# Nearest-neighbour search, side by side", ""]
    lines += [f"{result['machine']}; {result['date']}. `{result['command']}`", ""]
    lines += ["![recall against queries a second](ann.svg)", ""]
    for n in unique(row["n"] for row in rows):
        lines += targets(rows, n) + speeds(rows, n) + singles(rows, n) + costs(rows, n)
    lines += [
        f"Medians over {max(row.get('rounds', 0) for row in rows)} rounds in alternation; the rounds of a point lie "
        f"{100 * spread(rows):.0f} % apart in the middle case. Own memory (RssAnon) and mapped pages (RssFile) are "
        "what opening the index and 1,000 queries add to the process. Open to first answer leaves out the start of "
        "the interpreter and imports; process start to first answer has them. Cold: the index's files dropped from "
        "the page cache.",
        "",
    ]
    return "\n".join(lines)


# The drawing: a panel a kind of query and number of threads.
WIDTH, HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 430, 300, 64, 92, 74, 78
LEAST_RECALL = 0.80


def across(recall):
    """Recall is drawn by the logarithm of what is missing, so that .99 and .999 lie apart."""
    missing = math.log10(max(1 - recall, 0.001))
    start, end = math.log10(1 - LEAST_RECALL), -3
    return (missing - start) / (end - start) * WIDTH


def panel(rows, title, x0, y0, low, high):
    def up(qps):
        return HEIGHT - (math.log10(qps) - low) / (high - low) * HEIGHT

    out = [f'<g transform="translate({x0} {y0})">', f'<text x="0" y="-12" class="title">{title}</text>']
    for recall in [0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999]:
        x, label = across(recall), "≥ .999" if recall == 0.999 else f"{recall:g}".lstrip("0")
        target = ' class="target"' if recall in TARGETS else ""
        out.append(f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{HEIGHT}"{target}/>')
        out.append(f'<text x="{x:.1f}" y="{HEIGHT + 16}" text-anchor="middle">{label}</text>')
    for power in range(math.floor(low), math.ceil(high) + 1):
        for digit in (1, 2, 5):
            qps = digit * 10**power
            if low <= math.log10(qps) <= high:
                y = up(qps)
                out.append(f'<line x1="0" y1="{y:.1f}" x2="{WIDTH}" y2="{y:.1f}"/>')
                out.append(f'<text x="-7" y="{y + 4:.1f}" text-anchor="end">{qps:,}</text>')
    out.append(f'<text x="{WIDTH / 2}" y="{HEIGHT + 34}" text-anchor="middle">recall@10</text>')
    for system in unique(row["system"] for row in rows):
        points = [p for p in frontier([r for r in rows if r["system"] == system]) if p[0] >= LEAST_RECALL]
        places = [(across(recall), up(qps)) for recall, qps in points]
        ours = system.startswith("sidenote")
        style = f'stroke="{colour(system)}" stroke-width="{2.6 if ours else 1.5}"'
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out.append(f'<polyline points="{line}" fill="none" {style}/>')
        for (x, y), (recall, qps) in zip(places, points):
            tip = f"<title>{system}: recall {recall:.4f}, {qps:,.0f} queries/s</title>"
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3.4 if ours else 2.4}" fill="{colour(system)}">{tip}</circle>')
    out.append("</g>")
    return out


def drawing(result):
    rows = [row for row in result["rows"] if batch(row) and row["recall_at_10"] >= LEAST_RECALL]
    panels = unique((row["n"], row["queries"], row["threads"]) for row in rows)
    columns = max(len(unique(row["threads"] for row in rows)), 1)
    systems = unique(row["system"] for row in rows)
    low = math.floor(math.log10(min(row["qps"] for row in rows)) * 4) / 4
    high = math.ceil(math.log10(max(row["qps"] for row in rows)) * 4) / 4
    wide = LEFT + columns * (WIDTH + GAP_X)
    high_px = TOP + math.ceil(len(panels) / columns) * (HEIGHT + GAP_Y)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high_px}" width="{wide}" height="{high_px}">',
        "<style>text{font:11px sans-serif;fill:#333}.title{font-weight:bold;font-size:13px}"
        "line{stroke:#e4e4e4}.target{stroke:#999;stroke-dasharray:4 3}</style>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="22" class="title">Queries a second against recall@10 (both axes logarithmic; '
        "up and right is better)</text>",
    ]
    per_line = max(1, math.ceil(len(systems) / 2))
    for place, system in enumerate(systems):
        x = LEFT + place % per_line * (wide - LEFT) / per_line
        y = 42 + place // per_line * 17
        width = 3 if system.startswith("sidenote") else 2
        out.append(f'<path d="M{x:.0f} {y - 4}h18" stroke="{colour(system)}" stroke-width="{width}"/>')
        out.append(f'<text x="{x + 23:.0f}" y="{y}">{system}</text>')
    for place, (n, queries, threads) in enumerate(panels):
        mine = [r for r in rows if (r["n"], r["queries"], r["threads"]) == (n, queries, threads)]
        title = f"{n:,} vectors, {queries} as queries, {threads} thread{'s' if threads > 1 else ''}"
        x = LEFT + place % columns * (WIDTH + GAP_X)
        out += panel(mine, title, x, TOP + place // columns * (HEIGHT + GAP_Y), low, high)
    return "\n".join([*out, "</svg>", ""])


def write(folder):
    with open(os.path.join(folder, "ann.json"), encoding="ascii") as text:
        result = json.load(text)
    text = table(result)
    with open(os.path.join(folder, "ann.md"), "w", encoding="utf-8") as out:
        out.write(text)
    with open(os.path.join(folder, "ann.svg"), "w", encoding="utf-8") as out:
        out.write(drawing(result))
    print(text)


if __name__ == "__main__":
    write(sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "results"))
