"""DupMAE on English Wikipedia and BookCorpus, from BERT-base.

    python -m train.prepare  --config configs/dupmae.py
    python -m train.pretrain --config configs/dupmae.py
    python -m train.export   --from runs/dupmae --to exported/dupmae

configs/wiki.py's text (prepared once for both) and schedule, with the bag-of-words loss beside RetroMAE's two and
embedded decoder queries (Liu et al., 2023, "RetroMAE-2"). The published results are those of [CLS] and token
embeddings side by side: configs/msmarco_dupmae.py fine-tunes both.
"""

from ml_collections import ConfigDict

from configs import defaults, wiki
from configs.tiny import tiny_pretraining


def get_config(variant: str = "") -> ConfigDict:
    config = wiki.get_config()
    config.workdir = "runs/dupmae"
    config.objective = "dupmae"
    config.decoder_query = "embedded"
    config.bag_of_words_weight = 0.1
    return tiny_pretraining(config) if defaults.is_tiny(variant) else config
