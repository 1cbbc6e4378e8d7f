"""The baseline: BERT-base, pretrained further on the same text as RetroMAE, by masked language modelling alone.

    python -m train.prepare  --config configs/masked_lm.py
    python -m train.pretrain --config configs/masked_lm.py
    python -m train.finetune --config configs/msmarco.py --config.init runs/masked_lm
    python -m train.export   --from runs/msmarco --to exported/msmarco
    python -m eval.msmarco   --model exported/msmarco --collection data/msmarco --split dev

configs/wiki.py's text (prepared once for both) and schedule, 15 % of the tokens masked: what RetroMAE adds is the
difference between the two. Published for BERT-base itself (the table of models pretrained on Wikipedia and BookCorpus
in RetroMAE's README), after fine-tuning on MS MARCO with hard negatives: MRR@10 .346, Recall@1000 .964.
"""

from ml_collections import ConfigDict

from configs import defaults, wiki
from configs.tiny import tiny_pretraining


def get_config(variant: str = "") -> ConfigDict:
    config = wiki.get_config()
    config.workdir = "runs/masked_lm"
    config.objective = "masked_lm"
    config.encoder_mask_probability = 0.15
    return tiny_pretraining(config) if defaults.is_tiny(variant) else config
