"""A cross-encoder that reranks MS MARCO passages, trained on hard negatives of a fine-tuned encoder.

    python -m eval.mine    --model exported/msmarco --collection data/msmarco --split train \\
        --output data/msmarco/mined_negatives.tsv
    python -m train.rerank --config configs/rerank.py
    python -m train.export --from runs/rerank --to exported/rerank
    python -m eval.rerank  --model exported/rerank --collection data/msmarco --split dev \\
        --run runs/eval/msmarco-dev/msmarco/run.trec

`exported/msmarco` is what `configs/msmarco.py` trains, and the run of the last line is what `eval.msmarco` wrote of it.
`data/msmarco` is as there. `:tiny` learns from the demo's collection, with random negatives.
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
