r"""Fine-tuning on MS MARCO passages for retrieval elsewhere: BEIR's collections, without training on them.

    python -m train.finetune --config configs/beir.py --config.init runs/wiki
    python -m train.export   --from runs/beir --to exported/beir
    python -m eval.beir      --model exported/beir --data data/beir --query-max-length 512 --passage-max-length 512

configs/wiki.py makes the model that it starts from. docs/evaluation.md says how BEIR's datasets come into `data/beir`.
`data/msmarco` is as in configs/msmarco.py, but the passages are read without titles, as the published run read them.
beir_negatives.tsv is what the original code's download_neg.py makes of msmarco-hard-negatives.jsonl, BEIR's own: for
each query, from each of the systems there, the first 5 passages that their cross-encoder scores at least 3 below the
worst relevant passage.

Published: nDCG@10 .452, the mean of 18 collections, for RetroMAE pretrained on English Wikipedia and BookCorpus; BERT
.371, Condenser .407. 10 epochs at 1e-5 with one hard negative; the original's batch is 128 queries on each of 8 GPUs.
Its documents are cut at 512 tokens, and it puts a title before its text with a space between; the texts that it is
trained on are shorter and have no titles.
"""

from ml_collections import ConfigDict

from configs import defaults
from configs.tiny import tiny_finetuning


def get_config(variant: str = "") -> ConfigDict:
    config = defaults.finetuning()
    config.workdir = "runs/beir"
    config.init = "Shitao/RetroMAE"
    config.collection = "data/msmarco"
    config.titles = False
    config.negatives = ("data/msmarco/beir_negatives.tsv",)
    config.negatives_depth = 200
    config.group_size = 2
    config.batch_size = 1024
    config.num_epochs = 10.0
    config.learning_rate = 1e-5
    config.query_max_length = 32
    config.passage_max_length = 144
    return tiny_finetuning(config) if defaults.is_tiny(variant) else config
