r"""A cross-encoder that reranks MS MARCO passages, trained on hard negatives of a fine-tuned encoder.

    python -m train.rerank --config configs/rerank.py --config.init runs/msmarco_pretrain
    python -m train.export --from runs/rerank --to exported/rerank
    python -m eval.rerank  --model exported/rerank --collection data/msmarco --split dev \
        --run runs/eval/msmarco-dev/msmarco_mined/run.trec

The commands in configs/msmarco.py make `data/msmarco`, mined_negatives.tsv in it, and the run of the last line;
configs/msmarco_pretrain.py makes the model that it starts from. No score of a cross-encoder alone is published; that of
an encoder which learnt from one is in configs/msmarco_distill.py. The original trains DeBERTa-v3, which is no model
type here, on groups of 65, 16 queries in a step, pairs of 200 tokens, 4 epochs at 1e-5; this recipe has the usual
settings of a BERT cross-encoder. `:tiny` learns from the demo's collection, with random negatives.
"""

from ml_collections import ConfigDict

from configs import defaults
from configs.tiny import tiny_reranking


def get_config(variant: str = "") -> ConfigDict:
    config = defaults.reranking()
    config.workdir = "runs/rerank"
    config.init = "Shitao/RetroMAE_MSMARCO"
    config.collection = "data/msmarco"
    config.negatives = ("data/msmarco/mined_negatives.tsv",)
    config.max_length = 192
    return tiny_reranking(config) if defaults.is_tiny(variant) else config
