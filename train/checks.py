"""What must hold before the first step; all that does not is reported at once."""

import dataclasses
import difflib
import math
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
from ml_collections import ConfigDict

from retromae_jax import masking, tracking
from retromae_jax.checkpoints.loading import Source, open_model
from retromae_jax.data.blocks import TokenBlocks
from retromae_jax.data.tokenization import fingerprint, load_tokenizer
from retromae_jax.errors import InputError
from retromae_jax.models.bert import BertConfig, Computation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = ("bfloat16", "float32")
Result = TypeVar("Result")


def fit(*problems: str | None) -> None:
    """Raises one InputError that lists the problems, if there are any (None stands for none)."""
    found = [problem for problem in problems if problem]
    if found:
        raise InputError("\n  ".join([f"the run cannot start, {len(found)} problem(s):", *found]))


def attempt(function: Callable[..., Result], *args: Any) -> tuple[Result | None, str | None]:
    """What a function returns, and None; or None, and the problem if it raises an InputError."""
    try:
        return function(*args), None
    except InputError as error:
        return None, str(error)


class Start(NamedTuple):
    """What a training starts from.

    Attributes:
        source: the model to start from; None starts at random.
        bert: family and sizes of the model.
        tokenizer: the model's.
    """

    source: Source | None
    bert: BertConfig
    tokenizer: "PreTrainedTokenizerBase"


def start(config: ConfigDict, open_source: Callable[[str], Source] = open_model) -> Start:
    """Opens the model to start from and its tokenizer, as `init`, `model` and `tokenizer` of the config say.

    Raises:
        InputError: if one of them cannot be opened, or tensors of the encoder are missing.
    """
    source = open_source(config.init) if config.init else None
    if source is not None:
        source.check_encoder()
    return Start(source, model_sizes(config, source), load_tokenizer(tokenizer_of(config, source)))


def tokenizer_of(config: ConfigDict, source: Source | None) -> str:
    """Where the tokenizer is: in `config.tokenizer`, or beside the model to start from."""
    if config.tokenizer:
        return config.tokenizer
    if source is None:
        raise InputError("with an empty `init`, --config.tokenizer must name a tokenizer's directory")
    return str(source.tokenizer)


def model_sizes(config: ConfigDict, source: Source | None) -> BertConfig:
    """Family and sizes of the model to start from, or with an empty `init` those that `config.model` gives."""
    if source is not None:
        return source.config
    fields = [field.name for field in dataclasses.fields(BertConfig)]
    for name in config.model:
        if name not in fields:
            nearest = difflib.get_close_matches(name, fields, 1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(fields)}"
            raise InputError(f"config.model has no size {name!r}; {hint}")
    return BertConfig.from_huggingface(config.model, "config.model")


def whole_numbers(config: ConfigDict, **least: int) -> str | None:
    """A problem if settings are less than they may be."""
    small = [
        f"{key} {config[key]} is less than {smallest}" for key, smallest in least.items() if config[key] < smallest
    ]
    return "; ".join(small) or None


def above_zero(config: ConfigDict, *keys: str) -> str | None:
    """A problem if settings are not finite numbers above 0."""
    return "; ".join(f"{key} {config[key]} is not above 0" for key in keys if not 0 < config[key] < math.inf) or None


def existing(config: ConfigDict, *keys: str) -> str | None:
    """A problem if there are not the files and directories that settings name."""
    paths = [(key, path) for key in keys for path in ([config[key]] if isinstance(config[key], str) else config[key])]
    return (
        "; ".join(f"{key} {path!r} is not there" for key, path in paths if not path or not Path(path).exists()) or None
    )


def shares(config: ConfigDict, *keys: str) -> str | None:
    """A problem if settings that are shares are not between 0 and 1."""
    return "; ".join(f"{key} {config[key]} is not between 0 and 1" for key in keys if not 0 <= config[key] < 1) or None


def batch(config: ConfigDict, parts: int = 1) -> str | None:
    """A problem if the batch does not divide over the devices, and the share of each into parts (0: no matter)."""
    devices = jax.device_count()
    if parts > 0 and config.batch_size % (devices * parts):
        into = f" in {parts} parts" if parts > 1 else ""
        return (
            f"batch_size {config.batch_size} does not divide over {devices} devices{into}; "
            f"take a multiple of {devices * parts}"
        )
    return None


def split(config: ConfigDict, bert: BertConfig) -> str | None:
    """A problem if parameters cannot be split over as many devices as asked (if they are more than 0)."""
    devices, width = jax.device_count(), bert.hidden_size
    if config.fsdp > 0 and (devices % config.fsdp or width % config.fsdp):
        possible = [str(number) for number in range(1, devices + 1) if devices % number == width % number == 0]
        return (
            f"fsdp {config.fsdp} does not divide both the {devices} devices and the model's hidden_size {width}; "
            f"possible are {', '.join(possible)}"
        )
    return None


def saving(config: ConfigDict) -> str | None:
    """A problem if checkpoints would fall between logged steps, whose metrics a resumed run would then miss."""
    if config.log_every > 0 and config.checkpoint_every % config.log_every:
        return f"checkpoint_every {config.checkpoint_every} is not a multiple of log_every {config.log_every}"
    return None


def watching(config: ConfigDict) -> str | None:
    """A problem if settings of how the run is watched make no sense."""
    stall = None if config.stall_minutes > 0 else f"stall_minutes {config.stall_minutes} is not more than 0"
    unknown = [known("trackers", name, tracking.TRACKERS) for name in config.trackers]
    missing = [
        f"trackers {name}: the package is not installed; pip install {name}"
        for name in tracking.missing(set(config.trackers) & tracking.TRACKERS.keys())
    ]
    problems = (stall, whole_numbers(config, skipped_steps_allowed=0), *unknown, *missing)
    return "; ".join(problem for problem in problems if problem) or None


def probe(config: ConfigDict) -> str | None:
    """A problem if settings of the retrieval probe make no sense."""
    if not config.probe_collection:
        return None
    problems = (
        existing(config, "probe_collection"),
        whole_numbers(config, probe_every=1, probe_passages=100),
    )
    return "; ".join(problem for problem in problems if problem) or None


def room(config: ConfigDict, bert: BertConfig) -> str | None:
    """A problem if the disk has no room for the checkpoints to keep, and for the one that is being written.

    Of the model, the encoder's tables and matrices are counted; of the disk, what the run's checkpoints take already
    is free, too.
    """
    width = bert.hidden_size
    layer = 4 * width**2 + 2 * width * bert.intermediate_size
    parameters = (bert.vocab_size + bert.max_position_embeddings) * width + bert.num_hidden_layers * layer
    encoders = 2 if config.get("untie_encoder") else 1
    # Each parameter and AdamW's two moments of it, in float32.
    each = 3 * 4 * encoders * parameters
    workdir = Path(config.workdir).expanduser().absolute()
    there = sum(file.stat().st_size for file in (workdir / "checkpoints").rglob("*") if file.is_file())
    nearest = next(path for path in (workdir, *workdir.parents) if path.exists())
    free, needed = shutil.disk_usage(nearest).free + there, (config.checkpoints_to_keep + 1) * each
    if free < needed:
        return (
            f"{workdir} has room for {free / 1e9:.1f} GB; checkpoints_to_keep {config.checkpoints_to_keep} of at least "
            f"{each / 1e9:.1f} GB each, and one more while it is written, need {needed / 1e9:.1f} GB; make room, keep "
            "fewer or choose another workdir"
        )
    return None


def known(key: str, value: str, values: Collection[str]) -> str | None:
    """A problem if a setting's value is unknown."""
    return None if value in values else f"{key} {value!r} is unknown; known are {', '.join(values)}"


def attention(config: ConfigDict, bert: BertConfig) -> str | None:
    """A problem if an implementation of attention is unknown, or cannot compute the model on these devices."""
    if config.compute_dtype not in DTYPES:
        return None  # a problem of its own
    platform = jax.devices()[0].platform
    return attempt(Computation.on, platform, bert, config.compute_dtype, False, config.attention)[1]


def vocabulary(tokenizer: "PreTrainedTokenizerBase", bert: BertConfig) -> str | None:
    """A problem if the tokenizer has words that the model has not, or pads with another token.

    BERT does not care about the latter. RoBERTa's positions, where others run the model, follow from it.
    """
    if len(tokenizer) > bert.vocab_size:
        return (
            f"the tokenizer {tokenizer.name_or_path} has {len(tokenizer):,} words, the model's table "
            f"{bert.vocab_size:,}; they do not belong together"
        )
    if bert.model_type != "bert" and tokenizer.pad_token_id != bert.pad_token_id:
        return (
            f"the tokenizer {tokenizer.name_or_path} pads with token {tokenizer.pad_token_id}, the model with "
            f"pad_token_id {bert.pad_token_id}; they do not belong together"
        )
    return None


def same_vocabulary(directory: str, blocks: TokenBlocks, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """A problem if the blocks were made with another vocabulary.

    Blocks of other making than `train.prepare`'s do not say; their ids must at least be in the vocabulary.
    """
    if not blocks.settings:
        return ids_in_vocabulary(directory, blocks.id_range(), tokenizer)
    if blocks.settings.get("tokenizer_fingerprint", fingerprint(tokenizer)) != fingerprint(tokenizer):
        return (
            f"{directory} was made with the tokenizer {blocks.settings.get('tokenizer')}, whose vocabulary is not that "
            f"of {tokenizer.name_or_path}; prepare the text again"
        )
    return None


def ids_in_vocabulary(directory: str, id_range: tuple[int, int], tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """A problem if token ids that were made elsewhere are not in the vocabulary."""
    lowest, highest = id_range
    if lowest < 0 or highest >= len(tokenizer):
        return (
            f"{directory} holds token ids from {lowest} to {highest}, the tokenizer {tokenizer.name_or_path} has "
            f"{len(tokenizer)} words"
        )
    return None


def maskable(config: ConfigDict) -> str | None:
    """A problem if rows are longer than those that masks can be made for."""
    if config.block_length > masking.LONGEST_ROW:
        return f"block_length {config.block_length} is more than the {masking.LONGEST_ROW} tokens that can be masked"
    return None


def positions(key: str, length: int, bert: BertConfig, shortest: int = 3) -> str | None:
    """A problem if texts may be longer than the model has positions, or must be shorter than makes sense."""
    if not shortest <= length <= bert.max_length:
        return f"{key} {length} is not between {shortest} and the model's {bert.max_length} positions"
    return None


def prompt(kind: str, config: ConfigDict, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """A problem if the prompt of a kind of texts, `query` or `passage`, leaves no room for them."""
    tokens = len(tokenizer.backend_tokenizer.encode(config[f"{kind}_prompt"]).ids)
    if tokens >= config[f"{kind}_max_length"]:
        return (
            f"{kind}_prompt takes {tokens} tokens, special ones included, and {kind}_max_length is "
            f"{config[f'{kind}_max_length']}; there is no room for a {kind}"
        )
    return None


def no_prompts(config: ConfigDict, directory: str) -> str | None:
    """A problem if prompts are to stand before texts that are token ids already."""
    if config.query_prompt or config.passage_prompt:
        return (
            f"query_prompt and passage_prompt stand before texts, and {directory} holds token ids; name a collection "
            "of texts, or leave the prompts empty"
        )
    return None


def distillation(config: ConfigDict) -> str | None:
    """A problem if there is nothing to learn from teacher scores: a query's passages are compared with each other."""
    if config.teacher_scores and config.group_size < 2:
        return f"group_size {config.group_size} is too small to learn from teacher_scores; take 2 or more"
    return None


def dimensions(config: ConfigDict, bert: BertConfig) -> str | None:
    """A problem if embeddings have not so many dimensions as matryoshka_dims names."""
    name, width = (
        ("projection", config.projection) if config.projection else ("the model's hidden_size", bert.hidden_size)
    )
    values = config.matryoshka_dims
    wrong = [value for value in values if not str(value).isdecimal() or not 1 <= int(value) <= width]
    return f"matryoshka_dims {wrong[0]!r} is not a number between 1 and {name} {width}" if wrong else None


def one_encoder(config: ConfigDict, source: Source | None) -> str | None:
    """A problem if one encoder is to start from a model that has two."""
    if source is not None and source.settings.untie_encoder and not config.get("untie_encoder"):
        return (
            f"init {config.init} holds two encoders, for queries and for passages; name the directory of one that "
            "train.export writes, query/ or passage/; or go on from both, in fine-tuning with untie_encoder"
        )
    return None


def projection(config: ConfigDict, source: Source | None) -> str | None:
    """A problem if the model to start from has a projection of another width."""
    found = source.settings.projection if source else 0
    if config.projection and found and config.projection != found:
        return f"projection {config.projection} is not the {found} of the model to start from, {config.init}"
    return None


def lexical(config: ConfigDict, source: Source | None, bert: BertConfig) -> str | None:
    """A problem if embeddings cannot have a lexical part."""
    if not config.lexical_top_k:
        return None
    if config.lexical_top_k > bert.vocab_size:
        return f"lexical_top_k {config.lexical_top_k} is more than the model's {bert.vocab_size:,} words"
    if config.normalize or config.matryoshka_dims:
        return "lexical_top_k goes neither with normalize nor with matryoshka_dims, which are of dense embeddings"
    if source is not None and not source.has_head():
        return (
            f"lexical_top_k scores words with a masked-language-model head, which {config.init} has not; start from a "
            "pretraining run, or from masked_lm/ of its export"
        )
    return None


def enough_items(config: ConfigDict, items: int, unit: str) -> str | None:
    """A problem if the data cannot fill a batch beside the items held out."""
    needed = config.validation_blocks + config.batch_size
    if items < needed:
        return (
            f"{config.data} has {items:,} {unit}; validation_blocks {config.validation_blocks} and batch_size "
            f"{config.batch_size} need at least {needed:,}"
        )
    return None


def positives(config: ConfigDict, trainable: int, judged: int) -> str | None:
    """A problem if no query has a relevant passage."""
    if trainable == 0:
        return f"none of the {judged:,} queries of {config.collection}, split {config.split}, has a relevant passage"
    return None
