"""The demo's pretraining: RetroMAE continued from a real checkpoint on 10,033 Wikipedia lead paragraphs.

    make demo-data
    python -m train.prepare  --config configs/demo.py
    python -m train.pretrain --config configs/demo.py

Minutes on 2 cores. The checkpoint (6 layers x 384) comes without decoder and masked-language-model head, which start
fresh. Expect a reconstruction gain that begins at 0 and grows: the decoder learns to read the sentence embedding.
"""

from ml_collections import ConfigDict

from configs import defaults
from configs.tiny import DEMO_DATA, tiny_pretraining


def get_config(variant: str = "") -> ConfigDict:
    config = defaults.pretraining()
    config.workdir = "runs/demo/pretrained"
    config.data = f"{DEMO_DATA}/blocks"
    config.sources = (f"{DEMO_DATA}/text.jsonl",)
    config.init = f"{DEMO_DATA}/checkpoint"
    config.block_length = 64
    config.batch_size = 16
    config.num_steps = 60
    config.learning_rate = 2e-4
    config.compute_dtype = "float32"
    config.shape_buckets = 1
    config.log_every = 5
    config.evaluate_every = 20
    config.checkpoint_every = 30
    config.validation_blocks = 64
    return tiny_pretraining(config) if defaults.is_tiny(variant) else config
