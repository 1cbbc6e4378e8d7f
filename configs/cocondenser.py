"""coCondenser on MS MARCO documents, from Condenser: spans of one document must be near each other.

    python -m train.prepare  --config configs/cocondenser.py
    python -m train.pretrain --config configs/cocondenser.py
    python -m train.finetune --config configs/msmarco.py --config.init runs/cocondenser
    python -m train.export   --from runs/msmarco --to exported/msmarco
    python -m eval.msmarco   --model exported/msmarco --collection data/msmarco --split dev

Goes on from `runs/condenser` (configs/condenser.py), encoder and head, on `data/msmarco/msmarco-docs.tsv` (`id TAB url
TAB title TAB text`): 8 epochs of 2,048 documents, two spans of up to 128 tokens each (Gao and Callan, 2022, and
the published code's documentation). All spans of a batch are each other's negatives: where they do not fit
into memory, --config.accumulation_parts encodes them in parts, with the same gradients. Published after fine-tuning on
MS MARCO with hard negatives (the paper's table of main results): MRR@10 .382, Recall@1000 .984.
"""

from ml_collections import ConfigDict

from configs import condenser, defaults
from configs.tiny import tiny_pretraining


def get_config(variant: str = "") -> ConfigDict:
    config = condenser.get_config()
    config.workdir = "runs/cocondenser"
    config.data = "data/msmarco_documents"
    config.sources = ("data/msmarco/msmarco-docs.tsv",)
    config.pack_documents = False  # a block must be of one document
    config.init = "runs/condenser"
    config.objective = "cocondenser"
    config.batch_size = 2048
    return tiny_pretraining(config) if defaults.is_tiny(variant) else config
