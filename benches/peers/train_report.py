"""The table (train.md) and the bars (train.svg) of benches/results/train.json.

    python train_report.py [FOLDER]
"""

import json
import os
import sys

OURS = "sidenote"


def unique(values):
    return list(dict.fromkeys(values))


def peers(rows):
    return [row for row in rows if not row["system"].startswith(OURS)]


def table(result):
    rows = result["rows"]
    lines = ["# Training, side by side", ""]
    lines += [f"{result['machine']}; {result['date']}. `{result['command']}`", ""]
    lines += ["![tokens a second](train.svg)", ""]
    lines += ["| model | system | batch | tokens/s, median | lowest to highest | peak MB | of the product rate |", "|---|---|---|--:|--:|--:|--:|"]
    for row in rows:
        part = f"{row['gflops'] / row['product_gflops']:.0%} of {row['product_gflops']:.0f} GFLOP/s" if "gflops" in row else "-"
        spread = f"{row['tokens_per_second_lowest']:,.0f} to {row['tokens_per_second_highest']:,.0f}"
        cells = [row["model"], row["system"], row["batch"], f"{row['tokens_per_second']:,.0f}", spread]
        lines.append("| " + " | ".join([*cells, f"{row['peak_bytes'] / 1e6:,.0f}", part]) + " |")
    lines.append("")
    for where in unique((row.get("machine", result["machine"]), row.get("date", "")) for row in rows):
        models = unique(row["model"] for row in rows if (row.get("machine", result["machine"]), row.get("date", "")) == where)
        lines.append(f"- {'; '.join(models)}: {' '.join(where)}")
    lines += ["", "## Aims", "", "| model | speed to the better mode of PyTorch (aim 1.5) | memory to that mode's (aim 0.5) | met |", "|---|--:|--:|---|"]
    for model in unique(row["model"] for row in rows):
        here = [row for row in rows if row["model"] == model]
        if not peers(here) or len(peers(here)) == len(here):
            continue
        mine = next(row for row in here if row["system"].startswith(OURS))
        best = max(peers(here), key=lambda row: row["tokens_per_second"])
        speed = mine["tokens_per_second"] / best["tokens_per_second"]
        memory = mine["peak_bytes"] / best["peak_bytes"]
        met = "yes" if speed >= 1.5 and memory <= 0.5 else "no"
        lines.append(f"| {model} | {speed:.2f} ({best['system']}) | {memory:.2f} | {met} |")
    lines += [
        "",
        f"Medians over {max(row['steps'] for row in rows)} steps in turns with the others; a step is batch, forward, backward, "
        "clipping and AdamW. The product rate is that of 2048 x 2048 matrices in f32 through the same kernels, measured between "
        "the turns; the part of it that a step reaches counts multiplications with weights and attention.",
        "",
    ]
    return "\n".join(lines)


def drawing(result):
    rows = result["rows"]
    models = unique(row["model"] for row in rows)
    longest = {m: max(row["tokens_per_second"] for row in rows if row["model"] == m) for m in models}
    y, bars = 40, []
    for model in models:
        bars.append(f'<text x="16" y="{y + 4}" class="title">{model}</text>')
        y += 14
        for row in (row for row in rows if row["model"] == model):
            wide = 420 * row["tokens_per_second"] / longest[model]
            fill = "#c0392b" if row["system"].startswith(OURS) else "#2e86c1"
            bars.append(f'<text x="236" y="{y + 13}" text-anchor="end">{row["system"]}</text>')
            bars.append(f'<rect x="244" y="{y + 1}" width="{wide:.1f}" height="16" fill="{fill}"/>')
            label = f"{row['tokens_per_second']:,.0f} tokens/s, {row['peak_bytes'] / 1e9:.2f} GB"
            bars.append(f'<text x="{250 + wide:.1f}" y="{y + 13}">{label}</text>')
            y += 21
        y += 16
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {y}" width="860" height="{y}">',
        "<style>text{font:11px sans-serif;fill:#333}.title{font-weight:bold;font-size:13px}</style>",
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="16" y="20" class="title">Tokens a second in training (longer is better), and peak memory</text>',
    ]
    return "\n".join([*head, *bars, "</svg>", ""])


def write(folder):
    with open(os.path.join(folder, "train.json"), encoding="ascii") as text:
        result = json.load(text)
    text = table(result)
    with open(os.path.join(folder, "train.md"), "w", encoding="utf-8") as out:
        out.write(text)
    with open(os.path.join(folder, "train.svg"), "w", encoding="utf-8") as out:
        out.write(drawing(result))
    print(text)


if __name__ == "__main__":
    write(sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "results"))
