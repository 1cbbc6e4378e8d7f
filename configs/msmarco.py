"""Fine-tuning on MS MARCO passages with given hard negatives.

    python -m train.finetune --config configs/msmarco.py --config.init runs/wiki
    python -m train.export   --from runs/msmarco --to exported/msmarco
    python -m eval.msmarco   --model exported/msmarco --collection data/msmarco --split dev

`data/msmarco` holds MS MARCO's collection.tsv, queries.train.tsv, qrels.train.tsv, queries.dev.small.tsv and
qrels.dev.small.tsv, and train_negatives.tsv with lines `query-id TAB passage-id,passage-id,...`. Published for
RetroMAE pretrained on MS MARCO, on passages with titles: MRR@10 .393, Recall@1000 .985.
"""

from ml_collections import ConfigDict

from configs import defaults
from configs.tiny import tiny_finetuning


def get_config(variant: str = "") -> ConfigDict:
    config = defaults.finetuning()
    config.workdir = "runs/msmarco"
    config.init = "Shitao/RetroMAE_MSMARCO"
    config.collection = "data/msmarco"
    config.negatives = ("data/msmarco/train_negatives.tsv",)
    config.group_size = 8
    config.batch_size = 128
    config.query_max_length = 32
    config.passage_max_length = 144
    return tiny_finetuning(config) if defaults.is_tiny(variant) else config
