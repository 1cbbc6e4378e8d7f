"""How to use an exported model: the code that its card shows. Each block of an encoder makes the same `scores`."""

from retromae_jax.checkpoints.huggingface import DENSE
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.models.text_encoder import KINDS

TEXTS = """\
queries = ["how do whales breathe"]
passages = ["Whales come up for air, because they have lungs.", "An apple falls from its tree."]
"""

OURS = """\
from retromae_jax import Encoder

encoder = Encoder.from_pretrained("{model}")
hits = encoder.search(queries[0], passages)
scores = [hit.score for hit in hits]
"""

SENTENCE_TRANSFORMERS = """\
{imports}from sentence_transformers import SentenceTransformer

{encoders}
scores = {query}.encode_query(queries) @ {passage}.encode_document(passages).T
"""

FAISS = """\
import faiss
{imports}from sentence_transformers import SentenceTransformer

{encoders}
vectors = {passage}.encode_document(passages)
index = faiss.IndexFlatIP(vectors.shape[1])
index.add(vectors)
scores, indices = index.search({query}.encode_query(queries), k=2)
"""

TRANSFORMERS = """\
import torch
{imports}

def encode(texts, max_length{of_kind}):
    tokenizer = AutoTokenizer.from_pretrained("{model}"{subfolder})
    model = AutoModel.from_pretrained("{model}"{subfolder})
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
{vectors}
    return vectors


scores = encode({queries}{query}) @ encode({passages}{passage}).T
"""
TRANSFORMERS_IMPORT = "from transformers import AutoModel, AutoTokenizer\n"
PROJECTION_IMPORTS = (
    f"from safetensors.torch import load_file\n{TRANSFORMERS_IMPORT}from transformers.utils import cached_file\n"
)
CLS = "    vectors = states[:, 0]"
MEAN = """\
    counted = inputs["attention_mask"][:, :, None]
    vectors = (states * counted).sum(1) / counted.sum(1)"""
PROJECTION = """\
    dense = load_file(cached_file("{model}", {dense}))
    vectors = torch.nn.functional.linear(vectors, dense["linear.weight"], dense["linear.bias"])"""
NORMALIZE = "    vectors = torch.nn.functional.normalize(vectors)"

MASKED_LM = """\
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{model}", subfolder="masked_lm")
model = AutoModelForMaskedLM.from_pretrained("{model}", subfolder="masked_lm")
inputs = tokenizer(f"Whales come up for {{tokenizer.mask_token}}.", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
words = tokenizer.batch_decode(logits[inputs["input_ids"] == tokenizer.mask_token_id].topk(5).indices)
"""

CROSS_OURS = """\
from retromae_jax import CrossEncoder

hits = CrossEncoder.from_pretrained("{model}").rank(queries[0], passages)
scores = [hit.score for hit in hits]
"""

CROSS_SENTENCE_TRANSFORMERS = """\
from sentence_transformers import CrossEncoder

model = CrossEncoder("{model}")
scores = model.predict([(queries[0], passage) for passage in passages])
"""

CROSS_TRANSFORMERS = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{model}")
model = AutoModelForSequenceClassification.from_pretrained("{model}")
pairs = [(queries[0], passage) for passage in passages]
inputs = tokenizer(pairs, padding=True, truncation=True, max_length={max_length}, return_tensors="pt")
with torch.no_grad():
    scores = model(**inputs).logits[:, 0]
"""

CROSS_BM25 = """\
import bm25s
from sentence_transformers import CrossEncoder

index = bm25s.BM25(corpus=passages)
index.index(bm25s.tokenize(passages, show_progress=False), show_progress=False)
found, _ = index.retrieve(bm25s.tokenize(queries, show_progress=False), k=2, show_progress=False)
scores = CrossEncoder("{model}").predict([(queries[0], passage) for passage in found[0]])
"""


def of_model(
    settings: EncoderSettings, model: str, is_on_hub: bool, is_cross_encoder: bool, is_pretrained: bool
) -> list[str]:
    """Sections of a card.

    Args:
        settings: how the model makes embeddings.
        model: its directory, or name on the Hub.
        is_on_hub: which of the two.
        is_cross_encoder: whether it scores pairs.
        is_pretrained: whether it is a pretraining run's, whose masked language model lies beside it.
    """
    if is_cross_encoder:
        blocks = {
            "retromae_jax": CROSS_OURS.format(model=model),
            "sentence-transformers": CROSS_SENTENCE_TRANSFORMERS.format(model=model),
            "transformers": CROSS_TRANSFORMERS.format(model=model, max_length=settings.max_length),
            "bm25s, reranked": CROSS_BM25.format(model=model),
        }
    else:
        blocks = _of_encoder(settings, model, is_on_hub)
    if is_pretrained:
        blocks["The masked language model, with transformers"] = MASKED_LM.format(model=model)
    sections = [_block(TEXTS)]
    for name, code in blocks.items():
        sections += [f"### {name}", _block(code)]
    if is_pretrained:
        sections.append(
            f"`python -m train.pretrain --config.init={model}`, with a recipe, goes on from here with all that the "
            "objective trains."
        )
    return sections


def _of_encoder(settings: EncoderSettings, model: str, is_on_hub: bool) -> dict[str, str]:
    names = {"imports": "", "encoders": f'encoder = SentenceTransformer("{model}")'}
    names |= dict.fromkeys(KINDS, "encoder")
    of_kinds = dict.fromkeys(("of_kind", "subfolder", *KINDS), "")
    dense = f'"{DENSE}/model.safetensors"'
    if settings.untie_encoder:
        # sentence-transformers opens no part of a repository.
        names["imports"] = "from huggingface_hub import snapshot_download\n" if is_on_hub else ""
        directory = f'snapshot_download("{model}")' if is_on_hub else f'"{model}"'
        encoders = [f'{kind} = SentenceTransformer(f"{{directory}}/{kind}")' for kind in KINDS]
        names |= {"encoders": "\n".join([f"directory = {directory}", *encoders])} | {kind: kind for kind in KINDS}
        of_kinds = {"of_kind": ", kind", "subfolder": ", subfolder=kind"} | {kind: f', "{kind}"' for kind in KINDS}
        dense = f'f"{{kind}}/{DENSE}/model.safetensors"'
    vectors = [CLS if settings.pooling == "cls" else MEAN]
    if settings.projection:
        vectors.append(PROJECTION.format(model=model, dense=dense))
    if settings.normalize:
        vectors.append(NORMALIZE)
    texts = {}
    for kind, name in (("query", "queries"), ("passage", "passages")):
        prompt = settings.prompt_of(kind)
        prompted = f"[{prompt!r} + text for text in {name}]" if prompt else name
        texts[name] = f"{prompted}, {settings.max_length_of(kind)}"
    return {
        "retromae_jax": OURS.format(model=model),
        "sentence-transformers": SENTENCE_TRANSFORMERS.format(**names),
        "transformers": TRANSFORMERS.format(
            imports=PROJECTION_IMPORTS if settings.projection else TRANSFORMERS_IMPORT,
            model=model,
            vectors="\n".join(vectors),
            **of_kinds,
            **texts,
        ),
        "faiss": FAISS.format(**names),
    }


def _block(code: str) -> str:
    return f"```python\n{code}```"
