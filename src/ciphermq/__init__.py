"""CipherMQ: messages sealed by their sender for their receiver."""

__version__ = "2.0.0.dev0"
