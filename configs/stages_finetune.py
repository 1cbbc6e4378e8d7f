"""The fine-tuning of `make stages`, which runs every stage of a retrieval pipeline on a collection in BEIR's layout.

    make stages DATA=data/collection

All its fine-tunings take as many steps with this recipe, and differ in `--config.init` (the model of the stage before),
`--config.negatives` (BM25's, or mined with that model) and `--config.teacher_scores`, those that go on with a
fine-tuned model also in learning rate and seed, those with the hardest negatives in `--config.group_size`. Minutes each
on 2 cores.
"""

from ml_collections import ConfigDict

from configs import defaults
from configs.tiny import tiny_finetuning


def get_config(variant: str = "") -> ConfigDict:
    config = defaults.finetuning()
    config.workdir = "runs/stages/finetuned"
    config.init = "runs/stages/pretrained"
    config.collection = "data/collection"
    config.group_size = 4
    config.batch_size = 16
    config.num_steps = 120
    config.learning_rate = 5e-4
    config.query_max_length = 24
    config.passage_max_length = 64
    config.compute_dtype = "float32"  # many processors have no instructions for bfloat16
    config.normalize = True
    config.temperature = 0.05
    config.shape_buckets = 4  # compiling more numbers of rows would take longer than the padding
    config.log_every = 10
    config.checkpoint_every = 60
    return tiny_finetuning(config) if defaults.is_tiny(variant) else config
