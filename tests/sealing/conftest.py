"""One authority and a few clients for all tests of sealing: making keys is what takes time."""

from __future__ import annotations

import pytest

from ciphermq.model.suites import Suite
from ciphermq.pki.verify import ChainVerifier
from support.sealing import MemoryAuthority, Party, Recipe


@pytest.fixture(scope="session")
def authority() -> MemoryAuthority:
    return MemoryAuthority()


@pytest.fixture(scope="session")
def verifier(authority: MemoryAuthority) -> ChainVerifier:
    return authority.verifier()


@pytest.fixture(scope="session")
def alice(authority: MemoryAuthority) -> Party:
    """A sender."""
    return authority.party("alice")


@pytest.fixture(scope="session")
def bob(authority: MemoryAuthority) -> Party:
    """A receiver."""
    return authority.party("bob")


@pytest.fixture(scope="session")
def carol(authority: MemoryAuthority) -> Party:
    """A receiver with another suite."""
    return authority.party("carol", Suite.MLKEM768_X25519)


@pytest.fixture(scope="session")
def mallory(authority: MemoryAuthority) -> Party:
    """A client like the others, of the same authority, who wishes them ill."""
    return authority.party("mallory", Suite.P256)


@pytest.fixture
def recipe(alice: Party, bob: Party, carol: Party) -> Recipe:
    """From alice for bob and carol."""
    return Recipe(alice, [bob, carol])
