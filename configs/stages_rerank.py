"""The cross-encoder of `make stages`, which runs every stage of a retrieval pipeline on a collection in BEIR's layout.

    make stages DATA=data/collection

It learns from the negatives that the fine-tuned encoder mined, and starts from all layers of the checkpoint, of which
the encoders have the first two: a teacher should know more. 10 to 20 minutes on 2 cores.
"""

from ml_collections import ConfigDict

from configs import defaults
from configs.tiny import DEMO_DATA, tiny_reranking


def get_config(variant: str = "") -> ConfigDict:
    config = defaults.reranking()
    config.workdir = "runs/stages/reranker"
    config.init = f"{DEMO_DATA}/checkpoint"
    config.collection = "data/collection"
    config.max_length = 64
    config.group_size = 4
    config.batch_size = 16
    config.num_steps = 240
    config.learning_rate = 2e-4
    config.compute_dtype = "float32"  # many processors have no instructions for bfloat16
    config.shape_buckets = 4
    config.log_every = 20
    config.checkpoint_every = 60
    return tiny_reranking(config) if defaults.is_tiny(variant) else config
