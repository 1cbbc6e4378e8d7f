"""The cross-encoder of `make stages`, which runs every stage of a retrieval pipeline on a collection in BEIR's layout.

    make stages DATA=data/collection

It learns from the negatives that the fine-tuned encoder mined. Minutes on 2 cores.
"""

from ml_collections import ConfigDict

from configs import defaults
from configs.tiny import tiny_reranking


def get_config(variant: str = "") -> ConfigDict:
    config = defaults.reranking()
    config.workdir = "runs/stages/reranker"
    config.init = "runs/stages/pretrained"
    config.collection = "data/collection"
    config.max_length = 80
    config.group_size = 4
    config.batch_size = 16
    config.num_steps = 60
    config.learning_rate = 1e-4
    config.shape_buckets = 4
    config.log_every = 10
    config.checkpoint_every = 30
    return tiny_reranking(config) if defaults.is_tiny(variant) else config
