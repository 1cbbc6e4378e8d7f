"""Writes a run's model as Hugging Face directories, with a model card.

    python -m train.export --from runs/msmarco --to exported/msmarco

Training commands do this at their end: the directory is WORKDIR/export. RUN/checkpoints/STEP in place of RUN exports
that checkpoint instead of the newest.

The directory opens with AutoModel, AutoTokenizer and SentenceTransformer; after fine-tuning with untie_encoder, those
are query/ and passage/ in it. With lexical_top_k, what they open is the embeddings' dense part, and lexical/ holds the
rest for eval.msmarco. For a pretraining run, masked_lm/ opens with AutoModelForMaskedLM and holds what else the
objective trains beside it, so that pretraining can be continued from it. The directory of a reranking run opens with
AutoModelForSequenceClassification and CrossEncoder instead.

README.md, the card, is written from what the run's files say. Scores in it come from evaluations; language, licence and
datasets from the options below:

    python -m eval.msmarco --model exported/msmarco --collection data/msmarco --output runs/eval/msmarco
    python -m train.export --from runs/msmarco --to exported/msmarco --evaluation runs/eval/msmarco --language en
"""

import argparse
from pathlib import Path

import jax
from safetensors import SafetensorError

from retromae_jax import hosts
from retromae_jax.checkpoints import hub, huggingface, train_state
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.checkpoints.train_state import Run
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.errors import InputError, exits_on_input_error, one_line
from retromae_jax.logging import read_metrics, say
from train import probe
from train.model_card import About, card_files

# Of a run's directory, where its training command exports to.
EXPORTED = "export"


def export(name: str, directory: Path, about: About | None = None) -> None:
    """Exports a run's newest checkpoint, or one that is named; on several hosts, to be called by all.

    Args:
        name: directory of a run or of one of its checkpoints.
        directory: where to write.
        about: what the card says beyond what the run does.

    Raises:
        InputError: if `name` is no run's, or `directory` cannot be written or holds something else than an earlier
            export.
    """
    if train_state.run_of(Path(name).expanduser()) is None:
        raise InputError(f"{name} is not the directory of a training run, or of a checkpoint: it has no run.json")
    source = open_model(name)
    tokenizer = load_tokenizer(str(source.tokenizer))
    run = Run(source.directory)
    parameters = jax.device_get(run.restore_parameters(source.step))
    run.close()
    step = run.checkpoints.saved
    if not hosts.is_first() or step is None:
        return
    settings, command = source.settings, train_state.read_description(source.directory)["command"]
    is_cross_encoder = any(name.startswith("classifier.") for name in parameters)
    card = card_files(source, step, is_cross_encoder, about or About(str(directory)))
    try:
        if is_cross_encoder:
            huggingface.save_cross_encoder(directory, source.config, parameters, tokenizer, settings)
            say(f"cross-encoder: {directory}")
        else:
            huggingface.save_encoder(directory, source.config, parameters, tokenizer, settings)
            say(f"encoder{'s, query/ and passage/' if settings.untie_encoder else ''}: {directory}")
        if command == "pretrain":
            huggingface.save_masked_lm(directory / "masked_lm", source.config, parameters, tokenizer)
            say(f"masked language model: {directory / 'masked_lm'}")
        huggingface.add_files(directory, card)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{directory} cannot be written: {one_line(error)}; make room or choose another --to, and start "
            f"train.export --from {name}"
        ) from error
    if best := probe.best_step(read_metrics(source.directory)):
        kept = source.directory / "checkpoints" / str(best.step)
        where = f"it is {kept}" if kept.is_dir() else "its checkpoint is not kept"
        say(f"retrieval probe: {best.told()}; {where}; exported is step {step:,}")


def export_run(workdir: str) -> None:
    """What training commands do at their end: exports the run to `export/` in its directory."""
    export(workdir, Path(workdir).expanduser() / EXPORTED)
    hosts.wait_for_all("exported")


@exits_on_input_error
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m train.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", dest="run", required=True, metavar="RUN", help="directory of a run or a checkpoint")
    parser.add_argument("--to", dest="directory", required=True, type=Path, metavar="DIR", help="where to write")
    parser.add_argument(
        "--evaluation",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="output of an evaluation of the model; may be repeated",
    )
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        metavar="CODE",
        help="of the texts, such as en; may be repeated (default: as the card of the model it began with says)",
    )
    parser.add_argument(
        "--licence",
        default="",
        metavar="NAME",
        help="of the model, as the Hub calls it, such as apache-2.0 (default: as that card says)",
    )
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME",
        help="training data on the Hugging Face Hub; may be repeated",
    )
    parser.add_argument(
        "--push-to-hub",
        metavar="NAME",
        help="upload the directory to this repository of the Hugging Face Hub, with the token of HF_TOKEN or of "
        "`hf auth login`; private if it is new",
    )
    parser.add_argument("--public", action="store_true", help="with --push-to-hub: let everybody see a new repository")
    arguments = parser.parse_args()
    if arguments.public and not arguments.push_to_hub:
        parser.error("--public goes with --push-to-hub")
    about = About(
        arguments.push_to_hub or str(arguments.directory),
        bool(arguments.push_to_hub),
        arguments.language,
        arguments.licence,
        arguments.dataset,
        arguments.evaluation,
    )
    if arguments.push_to_hub:
        hub.check_token()
    export(arguments.run, arguments.directory, about)
    if arguments.push_to_hub:
        say(f"on the Hub: {hub.push(arguments.directory, arguments.push_to_hub, arguments.public)}")


if __name__ == "__main__":
    main()
