"""Answers that rate or represent texts instead of writing one: rerank, score, classify, pooling. Pure, vLLM's forms."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matrixinfer.enginesim.answers import embedding, prompt_seed
from matrixinfer.enginesim.tokens import token_ids
from matrixinfer.enginesim.wire import BadRequest, content_text, prompt_tokens_of, whole_number

__all__ = ["classified", "pairs_to_score", "pooled", "relevance", "rerank_request", "reranked"]

_LABELS: Final = ("LABEL_0", "LABEL_1")
_DIMENSIONS: Final = 8

Tokens = tuple[int, ...]


def relevance(query: Sequence[int], text: Sequence[int]) -> float:
    """How much two texts have in common, in [0, 1]: the share of the query's tokens that the text has."""
    wanted = set(query)
    return len(wanted & set(text)) / len(wanted) if wanted else 0.0


def rerank_request(body: Mapping[str, Any]) -> tuple[Tokens, tuple[str, ...], int]:
    """Query, documents, and how many of them are wanted. Raises `BadRequest`."""
    documents = body.get("documents")
    if not isinstance(body.get("query"), str) or not isinstance(documents, list) or not documents:
        raise BadRequest("query must be text and documents a non-empty array", param="documents")
    texts = tuple(_text(document) for document in documents)
    return tuple(token_ids(body["query"])), texts, whole_number(body, "top_n", 0, low=0, high=1 << 31) or len(texts)


def reranked(query: Tokens, documents: Sequence[str], top: int) -> list[dict[str, object]]:
    """The best documents, best first."""
    rated = [(relevance(query, token_ids(text)), index, text) for index, text in enumerate(documents)]
    return [
        {"index": index, "document": {"text": text}, "relevance_score": score}
        for score, index, text in sorted(rated, key=lambda item: (-item[0], item[1]))[:top]
    ]


def pairs_to_score(body: Mapping[str, Any]) -> list[tuple[Tokens, Tokens]]:
    """The pairs that are compared: one text with each, or each with its own. Raises `BadRequest`."""
    left = prompt_tokens_of(body.get("text_1", body.get("queries")), "text_1")
    right = prompt_tokens_of(body.get("text_2", body.get("documents")), "text_2")
    if len(left) not in (1, len(right)):
        raise BadRequest("text_1 must be one text, or as many as text_2", param="text_1")
    return list(zip(left * len(right) if len(left) == 1 else left, right, strict=True))


def classified(tokens: Tokens, index: int) -> dict[str, object]:
    """One text put into one of two classes."""
    share = prompt_seed(tokens, "classes") % 1001 / 1000
    probabilities = [share, 1 - share]
    label = _LABELS[probabilities.index(max(probabilities))]
    return {"index": index, "label": label, "probs": probabilities, "num_classes": len(_LABELS)}


def pooled(tokens: Tokens, index: int) -> dict[str, object]:
    """One text as a vector."""
    return {"index": index, "object": "pooling", "data": embedding(prompt_seed(tokens, "pooling"), _DIMENSIONS)}


def _text(document: object) -> str:
    return str(document.get("text", "")) if isinstance(document, dict) else content_text(document)
