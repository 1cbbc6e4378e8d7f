"""Every key that a recipe may set, with its default and its meaning.

A recipe starts from `pretraining()`, `finetuning()` or `reranking()` and changes what it is about. `--help` of the
commands prints these tables, and a key that is not in them is refused.
"""

from ml_collections import ConfigDict

# key: (default, meaning). The type of the default is the type of the key.
PRETRAINING = {
    "workdir": ("runs/pretrain", "directory of the run: checkpoints, metrics, export"),
    "seed": (42, "decides initial weights, data order, masks and dropout"),
    # Text, read by train.prepare.
    "sources": (
        (),
        "where text comes from: files (.jsonl .json .tsv .txt .xml, each also .gz .bz2 .xz; .parquet), folders of "
        "such, saved Hugging Face datasets, or Hub names NAME, NAME:CONFIG, NAME:CONFIG:SPLIT",
    ),
    "text_field": ("text", "the column (parquet, datasets) or key (jsonl, json) that holds the text"),
    "data": (
        "data/blocks",
        "directory of the prepared token blocks: train.prepare writes it, train.pretrain reads it",
    ),
    "block_length": (512, "longest block in tokens, [CLS] and [SEP] included"),
    "pack_documents": (False, "let one block hold several short documents; not for cocondenser"),
    "workers": (0, "processes that tokenize; 0 takes one for each core"),
    # Model.
    "init": (
        "",
        "where weights come from: Hugging Face directory, Hub name or run directory; empty starts at random",
    ),
    "tokenizer": ("", "directory or Hub name of the tokenizer; empty takes the one beside `init`"),
    "model": (
        ConfigDict(),
        "with an empty `init`: the model's sizes under Hugging Face BERT names; `model_type` is bert (if left out), "
        "roberta or xlm-roberta",
    ),
    "objective": ("retromae", "the pretraining objective: a file of retromae_jax/objectives"),
    "encoder_mask_probability": (0.3, "share of tokens masked for the encoder; recipes of the baselines set 0.15"),
    "decoder_mask_probability": (0.5, "retromae, dupmae: share of tokens hidden from each decoder row"),
    "decoder_query": (
        "position",
        "retromae, dupmae: decoder queries, `position` (published RetroMAE) or `embedded` (published DupMAE, BGE)",
    ),
    "bag_of_words_weight": (0.1, "dupmae: weight of the bag-of-words loss"),
    "head_layers": (2, "condenser, cocondenser: transformer layers of the head"),
    "skip_from": (6, "condenser, cocondenser: encoder layer whose states the head gets beside the last [CLS]"),
    "late_masked_lm": (True, "condenser, cocondenser: let the encoder's last layer predict the masked tokens too"),
    # Optimization.
    "batch_size": (256, "texts in one optimizer step, over all devices; cocondenser: documents, of two spans each"),
    "num_epochs": (8.0, "passes over the data; ignored where num_steps is set"),
    "num_steps": (0, "optimizer steps; 0 counts them from num_epochs"),
    "learning_rate": (1e-4, "peak learning rate"),
    "warmup_fraction": (0.1, "share of the steps in which the learning rate climbs; then it falls to 0"),
    "weight_decay": (0.01, "AdamW weight decay; biases and LayerNorm are exempt"),
    "clip_norm": (1.0, "gradients are scaled down to this global norm"),
    "compute_dtype": ("bfloat16", "dtype of activations: bfloat16 or float32; parameters are float32"),
    "attention": (
        "auto",
        "implementation of attention: `plain`; `cached`, in tiles for a CPU's cache; `pallas`, a kernel for TPUs; "
        "`cudnn`, for NVIDIA's GPUs, bfloat16 and models without dropout of attention probabilities; or "
        "`auto`, which takes one of the first three",
    ),
    "remat": (
        False,
        "compute the layers' activations again in the backward pass instead of keeping them: less memory, one more "
        "forward pass",
    ),
    "fsdp": (
        1,
        "number of devices that parameters and AdamW's state are split over (FSDP, ZeRO-3), for models that one device "
        "has no room for; must divide the number of devices, and is fastest within a host",
    ),
    "accumulation_parts": (
        1,
        "parts of a batch that are computed one after the other; the gradients are the batch's (cocondenser: by "
        "gradient caching)",
    ),
    "pack_rows": (True, "put several short texts into one row of `block_length` tokens; losses are the same"),
    "shape_buckets": (
        16,
        "number of shapes (numbers of rows; without pack_rows, lengths) that batches are padded to; "
        "each that occurs is compiled once",
    ),
    # Watching and saving.
    "log_every": (50, "steps between logged metrics"),
    "validation_blocks": (
        512,
        "blocks (cocondenser: documents) held out to measure the losses and the reconstruction gain",
    ),
    "evaluate_every": (1000, "steps between measurements on the held-out text"),
    "probe_collection": (
        "",
        "retrieval probe: a BEIR or MS MARCO directory, in which the encoder is measured while it is trained (nDCG@10, "
        "MRR@10); empty for none",
    ),
    "probe_split": ("dev", "which qrels of probe_collection"),
    "probe_every": (1000, "steps between probes"),
    "probe_passages": (
        10000,
        "passages that a probe searches: those relevant to its queries, and a random sample; the queries are those, up "
        "to 1,000, whose relevant passages make up half of them at most",
    ),
    "trackers": (
        (),
        "where metrics go beside metrics.jsonl and TensorBoard: `wandb`, `mlflow`, or both; each reads its own "
        "environment variables (WANDB_PROJECT, MLFLOW_TRACKING_URI, ...)",
    ),
    "checkpoint_every": (1000, "steps between checkpoints"),
    "checkpoints_to_keep": (3, "how many checkpoints stay on disk"),
    "stall_minutes": (20.0, "when no step ends for so long, the stacks of all threads are written to the workdir"),
    "skipped_steps_allowed": (
        10,
        "steps whose loss or gradient is not finite are skipped; after more than this many in a row the run stops",
    ),
    "debug_nans": (False, "stop at the operation that makes the first NaN; slower, and takes more memory"),
}

_OF_EVERY_TRAINING = {
    key: PRETRAINING[key]
    for key in (
        "workdir",
        "seed",
        "init",
        "tokenizer",
        "model",
        "num_steps",
        "warmup_fraction",
        "weight_decay",
        "clip_norm",
        "compute_dtype",
        "attention",
        "log_every",
        "trackers",
        "checkpoint_every",
        "checkpoints_to_keep",
        "stall_minutes",
        "skipped_steps_allowed",
        "debug_nans",
    )
}

FINETUNING = {
    **_OF_EVERY_TRAINING,
    **{key: value for key, value in PRETRAINING.items() if key.startswith("probe_")},
    "titles": (True, "put a passage's title, where it has one, before its text"),
    "title_separator": (" ", "between title and text; the published MS MARCO models have [SEP]"),
    "collection": (
        "",
        "BEIR directory, directory with MS MARCO's collection.tsv, queries and qrels files, or with what the original "
        "code prepared of them; train.convert makes one of jsonl examples",
    ),
    "split": ("train", "which qrels of the collection to learn from"),
    "negatives": ((), "files of hard negatives, lines `query-id TAB passage-id,passage-id,...`"),
    "negatives_depth": (200, "hard negatives are drawn from the first this many of a query's list"),
    "group_size": (
        8,
        "passages per query: one positive, the rest negatives; 1 leaves in-batch negatives only",
    ),
    "batch_size": (128, "queries in one optimizer step, over all devices"),
    "shape_buckets": (
        64,
        "number of shapes (numbers of rows, which short texts share) that batches are padded to; each that occurs is "
        "compiled once",
    ),
    "query_max_length": (32, "tokens of a query, [CLS] and [SEP] included"),
    "passage_max_length": (128, "tokens of a passage, [CLS] and [SEP] included"),
    "query_prompt": ("", "stands before every query, for example `query: `; counts among its tokens"),
    "passage_prompt": ("", "stands before every passage"),
    "num_epochs": (4.0, PRETRAINING["num_epochs"][1]),
    "learning_rate": (2e-5, PRETRAINING["learning_rate"][1]),
    "pooling": ("cls", "sentence embedding: `cls` or `mean`"),
    "projection": (0, "width that a linear layer gives the sentence embedding; 0 leaves it as wide as the model"),
    "normalize": (False, "scale embeddings to length 1 (cosine similarity)"),
    "lexical_top_k": (
        0,
        "DupMAE's embeddings: beside the sentence embedding, the scores of so many words of the vocabulary, those that "
        "the masked-language-model head scores highest; 0 for none",
    ),
    "untie_encoder": (
        False,
        "give queries and passages an encoder each, which begin alike; both read all texts of a batch, so training "
        "takes twice the time",
    ),
    "temperature": (1.0, "scores are divided by this before the softmax"),
    "mask_false_negatives": (
        True,
        "keep passages that are relevant to a query, but came into the batch for another, out of its softmax, and "
        "count a passage that is in the batch several times once; the original code takes all as negatives",
    ),
    "gradient_cache_chunk": (
        0,
        "gradient caching: rows of texts that a device encodes at once; 0 for all. Results are the same, memory grows "
        "with the chunk instead of the batch, and texts are encoded twice",
    ),
    "matryoshka_dims": (
        (),
        "the loss is the mean over the embeddings' first dimensions of these numbers, for example (768,256,64); empty "
        "takes whole embeddings",
    ),
    # Distillation.
    "teacher_scores": (
        (),
        "files with a cross-encoder's scores to distill from, lines `query-id passage-id score`; empty for none",
    ),
    "missing_scores": (
        "error",
        "passages without a teacher's score: `error`, `drop_passage` or `drop_query`",
    ),
    "distillation_loss": (
        "kl_elementwise_mean",
        "average over a batch: `kl_elementwise_mean`, over queries and their passages as in the original code, or "
        "`kl_batchmean`, over queries, which is group_size times as much",
    ),
    "contrastive_weight": (0.2, "with teacher_scores: weight of the contrastive loss beside the distillation loss"),
}

RERANKING = {
    **_OF_EVERY_TRAINING,
    **{key: FINETUNING[key] for key in ("titles", "split", "negatives", "negatives_depth", "learning_rate")},
    "collection": ("", "BEIR directory, or directory with MS MARCO's collection.tsv, queries and qrels files"),
    "max_length": (256, "tokens of query and passage together, special ones included; the passage's end is cut off"),
    "group_size": (8, "passages per query: one positive, the rest negatives"),
    "batch_size": (32, FINETUNING["batch_size"][1]),
    "shape_buckets": FINETUNING["shape_buckets"],
    "num_epochs": (2.0, FINETUNING["num_epochs"][1]),
}


def pretraining() -> ConfigDict:
    """The published RetroMAE recipe's settings, for `train.prepare` and `train.pretrain`."""
    return ConfigDict({key: default for key, (default, _) in PRETRAINING.items()})


def finetuning() -> ConfigDict:
    """The published fine-tuning recipe's settings, for `train.finetune`."""
    return ConfigDict({key: default for key, (default, _) in FINETUNING.items()})


def reranking() -> ConfigDict:
    """Usual settings of a cross-encoder, for `train.rerank`."""
    return ConfigDict({key: default for key, (default, _) in RERANKING.items()})


def is_tiny(variant: str) -> bool:
    """Whether `--config FILE:VARIANT` asks for the tiny variant, which every recipe has beside its full one.

    Raises:
        ValueError: if it asks for another.
    """
    if variant not in ("", "tiny"):
        raise ValueError(f"unknown variant {variant!r}; the only one is `tiny`")
    return variant == "tiny"
