"""Published scores of RetroMAE and its relatives, to be printed beside a new one. None of them was measured here.

Sources: "README" is that of the original code, https://github.com/staoxiao/RetroMAE; "RetroMAE v2" is the paper
https://arxiv.org/abs/2211.08769, tables 1 and 2, read in a transcription. For TREC's Deep Learning tracks, neither
source says whether the passages had titles.
"""

from typing import NamedTuple

MSMARCO_PASSAGES = 8_841_823


class Published(NamedTuple):
    """A system, its scores by measure, and where they were published."""

    system: str
    scores: dict[str, float]
    source: str


# Split -> published rows. Those of `dev` are of passages with titles, RocketQA's corpus.
MSMARCO = {
    "dev": (
        Published("BERT", {"MRR@10": 0.346, "Recall@1000": 0.964}, "README"),
        Published("RetroMAE, of Wikipedia and BookCorpus", {"MRR@10": 0.382, "Recall@1000": 0.981}, "README"),
        Published("coCondenser", {"MRR@10": 0.382, "Recall@1000": 0.984}, "README"),
        Published("RetroMAE, of MS MARCO", {"MRR@10": 0.393, "Recall@1000": 0.985}, "README"),
        Published("RetroMAE, of MS MARCO, distilled", {"MRR@10": 0.416, "Recall@1000": 0.988}, "README"),
        Published("DupMAE", {"MRR@10": 0.4102, "Recall@1000": 0.9874}, "RetroMAE v2"),
        Published("DupMAE, distilled", {"MRR@10": 0.4258, "Recall@1000": 0.9893}, "RetroMAE v2"),
    ),
    "dl19": (
        Published("coCondenser", {"nDCG@10": 0.717}, "RetroMAE v2"),
        Published("RetroMAE, distilled", {"nDCG@10": 0.681}, "RetroMAE v2"),
        Published("DupMAE", {"nDCG@10": 0.7128}, "RetroMAE v2"),
        Published("DupMAE, distilled", {"nDCG@10": 0.7509}, "RetroMAE v2"),
    ),
    "dl20": (
        Published("coCondenser", {"nDCG@10": 0.684}, "RetroMAE v2"),
        Published("RetroMAE, distilled", {"nDCG@10": 0.706}, "RetroMAE v2"),
        Published("DupMAE", {"nDCG@10": 0.7095}, "RetroMAE v2"),
        Published("DupMAE, distilled", {"nDCG@10": 0.7083}, "RetroMAE v2"),
    ),
}

# nDCG@10 on BEIR of models that were fine-tuned on MS MARCO only (RetroMAE v2, table 2). Their means over all 18 are
# the averages that the README has: .371, .407, .452.
BEIR_SYSTEMS = ("BERT", "Condenser", "RetroMAE")
BEIR = {
    "trec-covid": (0.615, 0.750, 0.772),
    "bioasq": (0.253, 0.322, 0.421),
    "nfcorpus": (0.260, 0.277, 0.308),
    "nq": (0.467, 0.486, 0.518),
    "hotpotqa": (0.488, 0.538, 0.635),
    "fiqa": (0.252, 0.259, 0.316),
    "signal1m": (0.204, 0.261, 0.265),
    "trec-news": (0.362, 0.376, 0.428),
    "robust04": (0.351, 0.349, 0.447),
    "arguana": (0.265, 0.298, 0.433),
    "webis-touche2020": (0.259, 0.248, 0.237),
    "cqadupstack": (0.282, 0.347, 0.317),
    "quora": (0.787, 0.853, 0.847),
    "dbpedia-entity": (0.314, 0.339, 0.390),
    "scidocs": (0.113, 0.133, 0.150),
    "fever": (0.682, 0.691, 0.774),
    "climate-fever": (0.187, 0.211, 0.232),
    "scifact": (0.533, 0.593, 0.653),
}
