"""RetroMAE on MS MARCO passages: pretraining on the text that will be searched.

    python -m train.prepare  --config configs/msmarco_pretrain.py
    python -m train.pretrain --config configs/msmarco_pretrain.py
    python -m train.finetune --config configs/msmarco.py --config.init runs/msmarco_pretrain
    python -m train.export   --from runs/msmarco --to exported/msmarco
    python -m eval.msmarco   --model exported/msmarco --collection data/msmarco --split dev

20 epochs of 1,024 x 150 tokens, otherwise as configs/wiki.py. The published run reads passages with their titles, which
`--config.sources=data/msmarco/corpus.tsv` (`id TAB title TAB text`) does here, and its code's documentation starts
from the model of configs/wiki.py instead of BERT: `--config.init=runs/wiki`. Published for that (the table of models
pretrained on MS MARCO in the code's README), after fine-tuning with hard negatives: MRR@10 .393, Recall@1000 .985; .416
and .988 with distillation from a cross-encoder.
"""

from ml_collections import ConfigDict

from configs import defaults
from configs.tiny import tiny_pretraining


def get_config(variant: str = "") -> ConfigDict:
    config = defaults.pretraining()
    config.workdir = "runs/msmarco_pretrain"
    config.data = "data/msmarco_passages"
    config.sources = ("data/msmarco/collection.tsv",)
    config.init = "google-bert/bert-base-uncased"
    config.block_length = 150
    config.batch_size = 1024
    config.num_epochs = 20.0
    config.learning_rate = 1e-4
    return tiny_pretraining(config) if defaults.is_tiny(variant) else config
