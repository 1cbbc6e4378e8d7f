"""The model card of an export: README.md with the Hub's metadata and the run's story, and a picture of its curves.

It tells what the run's files tell. What they do not say, such as the texts' language, is told by the user, or taken
from the card of the model that training started from; what nobody has said is left out.
"""

import contextlib
import importlib.metadata
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from retromae_jax.checkpoints import huggingface, train_state
from retromae_jax.checkpoints.loading import Source
from retromae_jax.curves import plot_curves
from retromae_jax.errors import InputError
from retromae_jax.files import read_json
from retromae_jax.logging import duration, read_metrics
from retromae_jax.models.text_encoder import KINDS, embedding_width
from retromae_jax.retrieval.significance import plus_minus
from train import heartbeat, probe, snippets

README, CURVES = "README.md", "curves.png"
SHOWN = ("MRR@10", "nDCG@10", "Recall@100", "Recall@1000")


class About(NamedTuple):
    """What the user says of the model, for those who find it.

    Attributes:
        name: what it is called where it is opened: the export's directory, or a name on the Hub.
        is_on_hub: which of the two.
        language: codes of the texts' languages, such as `en`; empty takes those of the model that training began with.
        licence: as the Hub calls it, such as `apache-2.0`; empty takes that of the model that training began with.
        datasets: names of the training data on the Hub.
        evaluations: output directories of evaluation commands.
    """

    name: str
    is_on_hub: bool = False
    language: Sequence[str] = ()
    licence: str = ""
    datasets: Sequence[str] = ()
    evaluations: Sequence[Path] = ()


class Base(NamedTuple):
    """The model that training began with, as far as it is known: its name on the Hub, and its card's metadata."""

    name: str | list[str] | None
    metadata: ModelCardData | None


# An evaluation's metrics.json.
Evaluation = dict[str, Any]


def card_files(source: Source, step: int, is_cross_encoder: bool, about: About) -> dict[str, bytes]:
    """The card and its picture, by name of their files.

    Args:
        source: the run that is exported.
        step: of the checkpoint that is exported.
        is_cross_encoder: whether the model scores pairs.
        about: what the user says of it.

    Raises:
        InputError: if an evaluation is none.
    """
    description = train_state.read_description(source.directory)
    evaluations = [read_evaluation(directory) for directory in about.evaluations]
    rows = read_metrics(source.directory)
    picture = io.BytesIO()
    has_curves = plot_curves({description["command"]: rows}, picture)
    metadata = _metadata(description, is_cross_encoder, about, evaluations)
    sections = [
        f"# {Path(about.name).name}",
        _what_it_is(source, description, is_cross_encoder),
        "## Use",
        *snippets.of_model(
            source.settings, about.name, about.is_on_hub, is_cross_encoder, description["command"] == "pretrain"
        ),
    ]
    if evaluations:
        sections += ["## Scores", _scores(evaluations)]
    sections += ["## Training", *_training(source, description, step, rows)]
    if has_curves:
        sections.append(f"![losses by optimizer step]({CURVES})")
    sections.append(
        f"<details><summary>All settings</summary>\n\n```json\n{json.dumps(description['config'], indent=2)}\n```\n\n"
        "</details>"
    )
    text = "\n\n".join([f"---\n{metadata.to_yaml()}\n---", *sections]) + "\n"
    ModelCard(text)  # raises what the Hub would not take
    return {README: text.encode(), **({CURVES: picture.getvalue()} if has_curves else {})}


def read_evaluation(directory: Path) -> Evaluation:
    """Reads what an evaluation command left in its output directory.

    Raises:
        InputError: if it is none.
    """
    remedy = "run the evaluation again"
    description = read_json(directory / "metrics.json", dict, remedy)
    if not {"collection", "split", "queries", "metrics", "intervals"} <= description.keys():
        raise InputError(f"{directory / 'metrics.json'}: not the scores of an evaluation command; {remedy}")
    return description


def base_of(init: str) -> Base:
    """What is known of the model that a run names as its start, through all runs and exports in between."""
    directory = Path(init).expanduser()
    if not init:
        return Base(None, None)
    if not directory.is_dir():
        cached = try_to_load_from_cache(init, README) if init.count("/") < 2 else None
        return Base(init, _metadata_of(Path(cached)) if isinstance(cached, str) else None)
    if run := train_state.run_of(directory):
        return base_of(train_state.read_description(run[0])["config"].get("init", ""))
    # An export of ours knows its base; its parts, such as masked_lm/, have its card.
    is_export = {path: (path / huggingface.EXPORT).is_file() for path in (directory, directory.parent)}
    owner = directory.parent if is_export[directory.parent] else directory
    metadata = _metadata_of(owner / README)
    name = metadata.base_model if metadata and is_export[owner] else None
    return Base(name if isinstance(name, str) else None, metadata)


def _metadata_of(card: Path) -> ModelCardData | None:
    # A card that somebody wrote by hand may hold anything.
    with contextlib.suppress(Exception):
        return ModelCard.load(card, ignore_metadata_errors=True).data
    return None


def _metadata(
    description: Mapping[str, Any], is_cross_encoder: bool, about: About, evaluations: Sequence[Evaluation]
) -> ModelCardData:
    """The YAML at the card's head, for the Hub's search and its pages."""
    base = base_of(description["config"].get("init", ""))
    task = "text-ranking" if is_cross_encoder else "sentence-similarity"
    tags = ["sentence-transformers", "cross-encoder" if is_cross_encoder else "feature-extraction", "retromae"]
    results = [
        EvalResult(
            task_type="reranking" if is_cross_encoder else "information-retrieval",
            task_name="Reranking" if is_cross_encoder else "Information Retrieval",
            dataset_type=_name_of(one),
            dataset_name=_name_of(one),
            dataset_split=one["split"],
            metric_type=measure.lower(),
            metric_name=measure,
            metric_value=round(value, 4),
        )
        for one in evaluations
        for measure, value in one["metrics"].items()
    ]
    return ModelCardData(
        language=list(about.language) or (base.metadata.language if base.metadata else None),
        license=about.licence or (base.metadata.license if base.metadata else None),
        base_model=base.name,
        datasets=list(about.datasets) or None,
        library_name="sentence-transformers",
        pipeline_tag=task,
        tags=tags,
        model_name=Path(about.name).name if results else None,
        eval_results=results or None,
    )


def _name_of(evaluation: Evaluation) -> str:
    return Path(evaluation["collection"]).name


def _what_it_is(source: Source, description: Mapping[str, Any], is_cross_encoder: bool) -> str:
    settings, command = source.settings, description["command"]
    if is_cross_encoder:
        text = (
            f"A cross-encoder: it reads a query and a passage together, up to {settings.max_length} tokens, and gives "
            "one score (a logit), by which passages are ranked."
        )
    else:
        pooling = {"cls": "the state of its first token", "mean": "the mean of its tokens' states"}[settings.pooling]
        parts = [pooling, *(["a linear layer"] if settings.projection else [])]
        parts += ["scaled to length 1"] if settings.normalize else []
        width = embedding_width(source.config, settings) - 2 * settings.lexical_top_k
        text = (
            f"A text encoder for retrieval: it makes a vector of {width} numbers of a text of up to "
            f"{settings.max_length} tokens ({', '.join(parts)}). A passage's score for a query is the inner product of "
            "their vectors."
        )
        for kind in KINDS:
            if prompt := settings.prompt_of(kind):
                text += f" Before every {kind} stands `{prompt}`."
        if settings.untie_encoder:
            text += " Queries and passages have an encoder each, `query/` and `passage/`."
        if settings.lexical_top_k:
            text += (
                f" Beside the vector, retromae_jax gives the scores of {settings.lexical_top_k} words of the "
                "vocabulary (`lexical/`, DupMAE's embeddings); other libraries open the vector alone."
            )
        if command == "pretrain":
            text += (
                f" It is pretrained ({description['config']['objective']}) and not fine-tuned for any task yet; "
                "`masked_lm/` holds the head, and what else its objective trains, to go on from."
            )
    return "\n".join(textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False))


def _scores(evaluations: Sequence[Evaluation]) -> str:
    """A table of the means over queries, with 95 % confidence intervals."""
    shown = [measure for measure in SHOWN if any(measure in one["metrics"] for one in evaluations)]
    lines = []
    for one in evaluations:
        cells = [_name_of(one), one["split"], f"{one['queries']:,}"]
        for measure in shown:
            is_known = measure in one["metrics"]
            cells.append(plus_minus(one["metrics"][measure], one["intervals"][measure]) if is_known else "-")
        lines.append(cells)
    table = _markdown(["collection", "split", "queries", *shown], lines)
    return f"{table}\n\nMeans over the queries, with 95 % confidence intervals."


def _training(
    source: Source, description: Mapping[str, Any], step: int, rows: Sequence[Mapping[str, float]]
) -> list[str]:
    config, command = description["config"], description["command"]
    facts = {
        "starts from": config.get("init") or "random weights",
        "data": ", ".join(f"{count:,} {unit}" for unit, count in description["data"].items()),
        "from": ", ".join(config.get("sources", ())) or config.get("collection", ""),
        "parameters in": "float32, computed in " + config.get("compute_dtype", "float32"),
        "step": f"{step:,}",
    }
    sections = []
    beat = source.directory / heartbeat.FILE
    if beat.is_file():
        values = read_json(beat, dict, "remove it, a run writes it anew")
        sections.append(f"```bash\n{heartbeat.command_line(command, values['arguments'])}\n```")
        facts["step"] += f" of {values['num_steps']:,}"
        if "devices" in values:
            facts |= {"devices": values["devices"], "time": duration(values["seconds"])}
    if best := probe.best_step(rows):
        facts["retrieval probe"] = best.told()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        facts["code"] = f"retromae_jax {importlib.metadata.version('retromae_jax')}"
    return [*sections, _markdown(["", ""], [[name, str(value)] for name, value in facts.items() if value])]


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    ruled = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)
