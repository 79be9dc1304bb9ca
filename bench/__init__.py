"""Measurements of the whole product, one module a topic: ``python -m bench [TOPIC…] [--json]``."""
