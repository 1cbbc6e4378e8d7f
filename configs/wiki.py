"""RetroMAE on English Wikipedia and BookCorpus: the published pretraining recipe.

    python -m train.prepare  --config configs/wiki.py
    python -m train.pretrain --config configs/wiki.py
    python -m train.export   --from runs/wiki --to exported/wiki

From BERT-base, 8 epochs of 256 x 512 tokens, 30 % of the tokens masked for the encoder and 50 % for the decoder
(Xiao et al., 2022, section 4.1). Published after fine-tuning on MS MARCO passages with titles: MRR@10 .382,
Recall@1000 .981.

`--config configs/wiki.py:tiny` runs in seconds on a CPU: a small random model on the text of `make demo-data`.
"""

from ml_collections import ConfigDict

from configs import defaults
from configs.tiny import tiny_pretraining


def get_config(variant: str = "") -> ConfigDict:
    config = defaults.pretraining()
    config.workdir = "runs/wiki"
    config.data = "data/wiki"
    config.pack_documents = True  # BookCorpus comes a sentence a document
    config.sources = ("wikimedia/wikipedia:20231101.en", "SamuelYang/bookcorpus")
    config.init = "google-bert/bert-base-uncased"
    config.block_length = 512
    config.batch_size = 256
    config.num_epochs = 8.0
    config.learning_rate = 1e-4
    return tiny_pretraining(config) if defaults.is_tiny(variant) else config
