"""The page of an evaluation, report.html: what a browser shows without any other file, script or host."""

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import NamedTuple

import numpy as np

from retromae_jax.data.retrieval import Collection
from retromae_jax.retrieval.metrics import Scores
from retromae_jax.retrieval.runs import Run, ranking

# Queries in each list, hits and relevant passages of each, and characters of a text: so the page stays small.
QUERIES, HITS, RELEVANT, CHARACTERS = 10, 5, 3, 300
RECALLS = [tenth / 10 for tenth in range(11)]
# What is plotted: interpolated precision, and the reciprocal rank whatever the rank.
MEASURES = ("RR", *(f"IPrec@{recall}" for recall in RECALLS))
RANKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>$system: $title</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #222; }
h1 { margin-bottom: 0; }
h2 { margin-top: 2rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; overflow-wrap: anywhere; }
th { color: #666; font-weight: normal; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
summary { cursor: pointer; margin: .6rem 0; }
details table { margin: 0 0 1rem 1rem; font-size: 14px; }
details td:nth-child(-n+3) { white-space: nowrap; }
tr.relevant { background: #e3f4e1; }
.plots img { width: 31rem; max-width: 100%; }
.note { color: #666; }
</style>
</head>
<body>
<h1>$system</h1>
<p>$title</p>
<h2>Measures</h2>
$measures
<p class="note">Means over all judged queries, with 95 % confidence intervals (percentile bootstrap over the queries).
A grade of $relevance_level or more counts as relevant; nDCG takes grades as they are.</p>
<h2>Where relevant passages stand</h2>
<div class="plots">$plots</div>
<h2>Queries</h2>
<p class="note">$order. Relevant passages are green.</p>
$queries
<h2>Settings</h2>
$settings
</body>
</html>""")


class Hit(NamedTuple):
    """A passage of a query: rank and score if it was found, and its grade if it was judged."""

    passage: str
    rank: int | None
    score: float | None
    grade: int | None


def page(title: str, description: Mapping, collection: Collection, run: Run, scores: Scores) -> str:
    """The page, as HTML.

    Args:
        title: what was searched.
        description: content of `metrics.json`.
        collection: what was searched.
        run: what was found.
        scores: of the run, in `MEASURES` too.
    """
    measure = "nDCG@10" if "nDCG@10" in scores.means else "MAP"
    lists = _lists(list(collection.queries), scores, measure)
    hits = {query: _hits(query, collection, run) for queries in lists.values() for query in queries}
    texts = _texts(collection, {hit.passage for some in hits.values() for hit in some})
    parts = []
    for name, queries in lists.items():
        parts.append(f"<h3>{name}</h3>")
        for query in queries:
            value = f"{measure} {scores.per_query[query][measure]:.4f}"
            parts.append(_query(query, collection, value, hits[query], texts))
    return PAGE.substitute(
        system=html.escape(description["system"]),
        title=html.escape(title),
        relevance_level=description["relevance_level"],
        measures=_measures(description),
        plots=_precision_plot(scores) + _rank_plot(scores, description["depth"]),
        order=f"In the order of {measure}, then of the first relevant passage's rank",
        queries="\n".join(parts),
        settings=_settings(description),
    )


def cut(text: str, characters: int) -> str:
    """A text in one line of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= characters else f"{text[: characters - 4]} ..."


def _lists(queries: Sequence[str], scores: Scores, measure: str) -> dict[str, list[str]]:
    """Queries by the name of the list that they are shown in."""
    values = scores.per_query
    worst_first = sorted(queries, key=lambda query: (values[query][measure], values[query]["RR"]))
    if len(queries) <= 3 * QUERIES:
        return {"All queries, the worst first": worst_first}
    return {
        "The worst": worst_first[:QUERIES],
        "The best": worst_first[: -QUERIES - 1 : -1],
        # So that there are some which nobody has picked.
        "Spread evenly over the split": [
            queries[(2 * number + 1) * len(queries) // (2 * QUERIES)] for number in range(QUERIES)
        ],
    }


def _hits(query: str, collection: Collection, run: Run) -> list[Hit]:
    """A query's best passages, and relevant ones that stand below or nowhere."""
    ranked = {passage: (rank, score) for rank, (passage, score) in enumerate(ranking(run.get(query, {})), 1)}
    not_found: tuple[None, None] = (None, None)
    grades = collection.qrels[query]
    best = list(ranked)[:HITS]
    relevant = [passage for passage, grade in grades.items() if grade >= collection.relevance_level]
    missed = sorted(set(relevant) - set(best), key=lambda passage: (ranked.get(passage, (math.inf,))[0], passage))
    return [
        Hit(passage, rank, score, grades.get(passage))
        for passage in best + missed[:RELEVANT]
        for rank, score in [ranked.get(passage, not_found)]
    ]


def _texts(collection: Collection, passages: Iterable[str]) -> dict[str, str]:
    """Titles and texts of passages, cut; without a collection, nothing."""
    if collection.passages is None:
        return {}
    ids = sorted(passages)
    texts = {}
    for passage, index in zip(ids, collection.passages.indices(ids).tolist(), strict=True):
        if index >= 0:  # some published qrels name passages that are not there
            title, text = collection.passages[index]
            texts[passage] = cut(f"{title}: {text}" if title else text, CHARACTERS)
    return texts


def _query(query: str, collection: Collection, value: str, hits: Sequence[Hit], texts: Mapping[str, str]) -> str:
    rows = [_row(("rank", "score", "grade", "passage", ""), "th")]
    for hit in hits:
        cells = (
            "not found" if hit.rank is None else str(hit.rank),
            "" if hit.score is None else f"{hit.score:.4f}",
            "" if hit.grade is None else str(hit.grade),
            hit.passage,
            texts.get(hit.passage, ""),
        )
        rows.append(_row(cells, is_relevant=hit.grade is not None and hit.grade >= collection.relevance_level))
    text = cut(collection.queries[query], CHARACTERS)
    return (
        f'<details open><summary><b>{html.escape(text)}</b> <span class="note">{html.escape(query)}, {value}</span>'
        f"</summary>\n<table>{''.join(rows)}</table></details>"
    )


def _measures(description: Mapping) -> str:
    header = ["measure", "mean", "95 % interval"]
    if "before" in description:
        header += ["before", "gain", "95 % interval"]
    rows = [_row(header, "th")]
    for measure, mean in description["metrics"].items():
        low, high = description["intervals"][measure]
        cells = [measure, f"{mean:.4f}", f"{low:.4f} to {high:.4f}"]
        if "before" in description:
            gain = description["gain"][measure]
            low, high = gain["interval"]
            cells += [f"{description['before'][measure]:.4f}", f"{gain['mean']:+.4f}", f"{low:+.4f} to {high:+.4f}"]
        rows.append(_row(cells))
    return f"<table>{''.join(rows)}</table>"


def _settings(description: Mapping) -> str:
    elsewhere = ("metrics", "intervals", "before", "gain", "settings", "seconds")
    values = {name: value for name, value in description.items() if name not in elsewhere} | description["settings"]
    values |= {f"seconds to {step}": value for step, value in description["seconds"].items()}
    rows = [_row((name, "-" if value is None else str(value))) for name, value in values.items()]
    return f"<table>{''.join(rows)}</table>"


def _row(cells: Iterable[str], tag: str = "td", is_relevant: bool = False) -> str:
    mark = ' class="relevant"' if is_relevant else ""
    return f"<tr{mark}>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>\n"


def _precision_plot(scores: Scores) -> str:
    figure, axes = _axes("recall", "precision")
    precisions = [scores.means[f"IPrec@{recall}"] for recall in RECALLS]
    axes.plot(RECALLS, precisions, marker=".")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title="Interpolated precision at recall, mean over the queries")
    return _image(figure, "precision-recall curve")


def _rank_plot(scores: Scores, depth: int) -> str:
    figure, axes = _axes("rank of the first relevant passage", "share of the queries")
    reciprocal_ranks = scores.values(["RR"])[:, 0]
    ranks = np.rint(1 / reciprocal_ranks[reciprocal_ranks > 0])
    last = [rank for rank in RANKS if rank < depth] + [depth]
    first = [1, *(rank + 1 for rank in last[:-1])]
    counts = [int(np.count_nonzero((low <= ranks) & (ranks <= high))) for low, high in zip(first, last, strict=True)]
    counts.append(len(reciprocal_ranks) - len(ranks))
    labels = [str(high) if low == high else f"{low}-{high}" for low, high in zip(first, last, strict=True)]
    bars = axes.bar([*labels, "none"], np.divide(counts, len(reciprocal_ranks)))
    axes.bar_label(bars, [f"{count:,}" for count in counts], fontsize=7)
    axes.tick_params("x", rotation=45)
    axes.margins(y=0.1)
    axes.set(title="Rank of the first relevant passage, with numbers of queries")
    return _image(figure, "ranks of the first relevant passages")


def _axes(x_label: str, y_label: str):
    from matplotlib.figure import Figure  # takes a while

    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _image(figure, description: str) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    encoded = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{description}" src="data:image/png;base64,{encoded}">\n'
