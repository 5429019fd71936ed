"""The documents of GET /v1/models and /v1/models/{id}, from the routing table, in OpenAI's form or Anthropic's.

Listed is what this gateway routes, and nothing else: with `WATCH_NAMESPACE`, the models of that namespace.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from matrixinfer.gateway.core.table import Listing

__all__ = ["ModelPages"]


class _Card(msgspec.Struct, omit_defaults=True):
    id: str
    created: int
    parent: str | None = None
    object: str = msgspec.field(default_factory=lambda: "model")
    owned_by: str = msgspec.field(default_factory=lambda: "matrixinfer")


class ModelPages:
    """The pages of one routing table."""

    def __init__(self, listings: Sequence[Listing]) -> None:
        self._listings = listings
        self._by_name = {listing.name: listing for listing in listings}
        self._all = msgspec.json.encode({"object": "list", "data": [_card(listing) for listing in listings]})

    def all(self, *, anthropic: bool) -> bytes:
        """Return the list of all models; an adapter names the model it belongs to."""
        if not anthropic:
            return self._all
        cards = [_anthropic_card(listing) for listing in self._listings]
        first, last = (cards[0]["id"], cards[-1]["id"]) if cards else (None, None)
        return msgspec.json.encode({"data": cards, "has_more": False, "first_id": first, "last_id": last})

    def one(self, name: str, *, anthropic: bool) -> bytes | None:
        """Return one model; None when there is none of that name."""
        listing = self._by_name.get(name)
        if listing is None:
            return None
        return msgspec.json.encode(_anthropic_card(listing) if anthropic else _card(listing))


def _card(listing: Listing) -> _Card:
    return _Card(listing.name, listing.created, listing.parent)


def _anthropic_card(listing: Listing) -> dict[str, str]:
    created = datetime.fromtimestamp(listing.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": listing.name, "display_name": listing.name, "created_at": created}
