r"""Fine-tuning on MS MARCO passages with hard negatives.

    python -m train.finetune --config configs/msmarco.py --config.init runs/msmarco_pretrain
    python -m train.export   --from runs/msmarco --to exported/msmarco
    python -m eval.mine      --model exported/msmarco --collection data/msmarco --split train \
        --output data/msmarco/mined_negatives.tsv
    python -m train.finetune --config configs/msmarco.py --config.init runs/msmarco_pretrain \
        --config.negatives data/msmarco/mined_negatives.tsv --config.workdir runs/msmarco_mined
    python -m train.export   --from runs/msmarco_mined --to exported/msmarco_mined
    python -m eval.msmarco   --model exported/msmarco_mined --collection data/msmarco --split dev

Two rounds: the first, with BM25's negatives, finds those of the second. configs/msmarco_pretrain.py makes the model
that both start from. `data/msmarco` holds MS MARCO's queries.train.tsv, qrels.train.tsv, queries.dev.small.tsv and
qrels.dev.small.tsv; and the passages, collection.tsv as MS MARCO has it, or para.txt and para.title.txt as RocketQA
published it with titles. train_negatives.tsv has BM25's negatives, MS MARCO's own, a line for each query:

    zcat qidpidtriples.train.full.2.tsv.gz | awk '$1 == last {printf ",%s", $3; next}
        {if (NR > 1) print ""; last = $1; printf "%s\t%s", $1, $3} END {print ""}' > train_negatives.tsv

or what `eval.mine --bm25` finds, or `eval.mine --run` in the run of a search engine. Published for RetroMAE pretrained
on MS MARCO and mined negatives, on passages with titles: MRR@10 .393, Recall@1000 .985; for RetroMAE pretrained on
English Wikipedia and BookCorpus: .382 and .981. The original's batch is 16 queries on each of 8 GPUs; between title and
text it has [SEP] (`--config.title_separator '[SEP]'`), here a space.
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
    config.group_size = 16
    config.batch_size = 128
    config.query_max_length = 32
    config.passage_max_length = 140
    return tiny_finetuning(config) if defaults.is_tiny(variant) else config
