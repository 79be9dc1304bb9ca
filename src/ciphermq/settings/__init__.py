"""Configuration: what can be set, where it comes from, and what is said when it is wrong."""

from __future__ import annotations

from ciphermq.settings.catalog import DatabaseSection, EncryptionSection
from ciphermq.settings.onex import OnexSection
from ciphermq.settings.server import (
    AccessSection,
    DeliverySection,
    LimitsSection,
    LoggingSection,
    ServerSection,
    ServerSettings,
    StorageSection,
    TlsSection,
)
from ciphermq.settings.source import check_files, load_server_settings
from ciphermq.settings.template import render_config, render_settings
from ciphermq.settings.values import Address

__all__ = [
    "AccessSection",
    "Address",
    "DatabaseSection",
    "DeliverySection",
    "EncryptionSection",
    "LimitsSection",
    "LoggingSection",
    "OnexSection",
    "ServerSection",
    "ServerSettings",
    "StorageSection",
    "TlsSection",
    "check_files",
    "load_server_settings",
    "render_config",
    "render_settings",
]
