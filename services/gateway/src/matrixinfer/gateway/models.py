"""The documents of GET /v1/models and /v1/models/{id}, rendered from the routing table."""

from collections.abc import Sequence

import msgspec

from matrixinfer.gateway.core.table import Listing

__all__ = ["model_page", "models_page"]


class _Card(msgspec.Struct, omit_defaults=True):
    id: str
    created: int
    parent: str | None = None
    object: str = msgspec.field(default_factory=lambda: "model")
    owned_by: str = msgspec.field(default_factory=lambda: "matrixinfer")


def models_page(listings: Sequence[Listing]) -> bytes:
    """Return the list of all models; an adapter names the model it belongs to."""
    return msgspec.json.encode({"object": "list", "data": [_card(listing) for listing in listings]})


def model_page(listing: Listing) -> bytes:
    """Return one model."""
    return msgspec.json.encode(_card(listing))


def _card(listing: Listing) -> _Card:
    return _Card(listing.name, listing.created, listing.parent)
