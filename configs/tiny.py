"""What `:tiny` makes of a recipe: the same objective, a small random model, the demo's text, a few steps.

`make demo-data` fetches that text and the vocabulary.
"""

from ml_collections import ConfigDict

DEMO_DATA = "build/demo"


def tiny_pretraining(config: ConfigDict) -> ConfigDict:
    """Shrinks a pretraining recipe to seconds on a CPU."""
    config.workdir += "_tiny"
    config.data += "_tiny"
    config.sources = (f"{DEMO_DATA}/text.jsonl",)
    config.init = ""
    config.tokenizer = f"{DEMO_DATA}/checkpoint"
    config.model = _tiny_model()
    config.skip_from = 1  # of 2 layers
    config.block_length = 32
    config.batch_size = 8
    config.num_steps = 6
    config.compute_dtype = "float32"
    config.shape_buckets = 1
    config.log_every = config.evaluate_every = config.checkpoint_every = 3
    config.validation_blocks = 8
    return config


def tiny_finetuning(config: ConfigDict) -> ConfigDict:
    """Shrinks a fine-tuning recipe to seconds on a CPU."""
    config = _tiny_training(config)
    config.query_max_length = 16
    config.passage_max_length = 32
    return config


def tiny_reranking(config: ConfigDict) -> ConfigDict:
    """Shrinks a recipe of a cross-encoder to seconds on a CPU."""
    config = _tiny_training(config)
    config.max_length = 32
    return config


def _tiny_training(config: ConfigDict) -> ConfigDict:
    """What both have, of a collection."""
    config.workdir += "_tiny"
    config.init = ""
    config.tokenizer = f"{DEMO_DATA}/checkpoint"
    config.model = _tiny_model()
    config.collection = f"{DEMO_DATA}/collection"
    config.split = "train"
    config.negatives = ()
    config.group_size = 2
    config.batch_size = 8
    config.num_steps = 6
    config.shape_buckets = 1
    config.compute_dtype = "float32"
    config.log_every = config.checkpoint_every = 3
    return config


def _tiny_model() -> ConfigDict:
    return ConfigDict({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64})
