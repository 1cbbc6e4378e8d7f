"""Writes a run's model as Hugging Face directories.

    python -m train.export --from runs/msmarco --to exported/

The directory opens with AutoModel, AutoTokenizer and SentenceTransformer; after fine-tuning with untie_encoder, those
are query/ and passage/ in it. With lexical_top_k, what they open is the embeddings' dense part, and lexical/ holds the
rest for eval.msmarco. For a pretraining run, masked_lm/ opens with AutoModelForMaskedLM and holds the decoder too, so
that pretraining can be continued from it. The directory of a reranking run opens with
AutoModelForSequenceClassification and CrossEncoder instead.
"""

import argparse
from pathlib import Path

from retromae_jax.checkpoints import huggingface, train_state
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.checkpoints.train_state import Run
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.logging import say


def export(run_directory: str, directory: Path) -> None:
    """Exports the newest checkpoint of a run.

    Raises:
        InputError: if `run_directory` is not a run's, or `directory` holds something else than an earlier export.
    """
    if not train_state.is_run(run_directory):
        raise InputError(f"{run_directory} is not the directory of a training run: it has no run.json")
    source = open_model(run_directory)
    tokenizer = load_tokenizer(str(source.tokenizer))
    run = Run(run_directory)
    parameters = run.restore_parameters()
    run.close()
    settings = source.settings
    if any(name.startswith("classifier.") for name in parameters):
        huggingface.save_cross_encoder(directory, source.config, parameters, tokenizer, settings.max_length)
        say(f"cross-encoder: {directory}")
        return
    huggingface.save_encoder(directory, source.config, parameters, tokenizer, settings)
    say(f"encoder{'s, query/ and passage/' if settings.untie_encoder else ''}: {directory}")
    if train_state.read_description(run_directory)["command"] == "pretrain":
        huggingface.save_masked_lm(directory / "masked_lm", source.config, parameters, tokenizer)
        say(f"masked language model: {directory / 'masked_lm'}")


@exits_on_input_error
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m train.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", dest="run", required=True, metavar="RUN", help="directory of a training run")
    parser.add_argument("--to", dest="directory", required=True, type=Path, metavar="DIR", help="where to write")
    arguments = parser.parse_args()
    export(arguments.run, arguments.directory)


if __name__ == "__main__":
    main()
