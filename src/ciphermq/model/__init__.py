"""Frozen types that every room shares, and the codecs of what is stored and sent."""
