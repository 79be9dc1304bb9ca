"""Public keys and message metadata, behind one face. Never topology, never a payload."""

from __future__ import annotations

from ciphermq.catalog.at_rest import AtRestKey
from ciphermq.catalog.face import Catalog, KeyEntry, OnexPublication, Publication
from ciphermq.catalog.onex import OnexAtRestKey
from ciphermq.catalog.postgres import PostgresCatalog
from ciphermq.catalog.sqlite import SqliteCatalog

__all__ = [
    "AtRestKey",
    "Catalog",
    "KeyEntry",
    "OnexAtRestKey",
    "OnexPublication",
    "PostgresCatalog",
    "Publication",
    "SqliteCatalog",
]
