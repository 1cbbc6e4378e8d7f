"""Condenser on English Wikipedia and BookCorpus, from BERT-base.

    python -m train.prepare  --config configs/condenser.py
    python -m train.pretrain --config configs/condenser.py
    python -m train.finetune --config configs/msmarco.py --config.init runs/condenser
    python -m train.export   --from runs/msmarco --to exported/msmarco
    python -m eval.msmarco   --model exported/msmarco --collection data/msmarco --split dev

8 epochs in blocks of 128 tokens, 15 % of them masked; a head of 2 layers reads the encoder's sixth, and the last layer
predicts the masked tokens too (Gao and Callan, 2021, and the published code's command). Published after
fine-tuning on MS MARCO with hard negatives (the papers' tables of MS MARCO passage ranking): MRR@10 .366. Its model is
where configs/cocondenser.py starts.
"""

from ml_collections import ConfigDict

from configs import defaults, wiki
from configs.tiny import tiny_pretraining


def get_config(variant: str = "") -> ConfigDict:
    config = wiki.get_config()
    config.workdir = "runs/condenser"
    config.data = "data/wiki_128"
    config.objective = "condenser"
    config.encoder_mask_probability = 0.15
    config.head_layers = 2
    config.skip_from = 6
    config.late_masked_lm = True
    config.block_length = 128
    config.batch_size = 1024
    return tiny_pretraining(config) if defaults.is_tiny(variant) else config
