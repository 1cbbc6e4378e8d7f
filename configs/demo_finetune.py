"""The demo's fine-tuning: short descriptions find their Wikipedia lead paragraphs.

    python -m train.finetune --config configs/demo_finetune.py

A minute or two on 2 cores, with in-batch negatives. Both rows of the demo's table that are fine-tuned use this
recipe; they differ in `--config.init` only.
"""

from ml_collections import ConfigDict

from configs import defaults
from configs.tiny import DEMO_DATA, tiny_finetuning


def get_config(variant: str = "") -> ConfigDict:
    config = defaults.finetuning()
    config.workdir = "runs/demo/finetuned"
    config.init = "runs/demo/pretrained"
    config.collection = f"{DEMO_DATA}/collection"
    config.titles = False
    config.group_size = 1
    config.batch_size = 64
    config.num_steps = 40
    config.learning_rate = 1e-4
    config.query_max_length = 24
    config.passage_max_length = 32
    config.pooling = "mean"
    config.normalize = True
    config.temperature = 0.05
    config.shape_buckets = 4  # compiling more numbers of rows would take longer than the padding
    config.compute_dtype = "float32"
    config.log_every = 4
    config.checkpoint_every = 20
    return tiny_finetuning(config) if defaults.is_tiny(variant) else config
