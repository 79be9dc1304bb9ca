"""What can be said in the 1.x protocol, for hypothesis."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from ciphermq.wire.lines import speech
from ciphermq.wire.lines.speech import Command, Reply, Said

letters = st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"])
words = st.text(letters, min_size=1, max_size=30)
phrases = st.lists(words, min_size=1, max_size=3).map(" ".join)
reasons = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=40)
ids = st.text(letters, min_size=1, max_size=20)
base64s = st.text("ABCxyz019+/=", min_size=1, max_size=44)
objects = st.dictionaries(words, words | st.integers() | st.none(), max_size=4)
messages = objects.map(lambda members: json.dumps(members).encode())
batches = st.lists(objects, max_size=3).map(lambda found: json.dumps(found).encode())
anything = st.text(max_size=60)

commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(speech.DeclareQueue, phrases),
    st.builds(speech.DeclareExchange, phrases),
    st.builds(speech.Bind, words, words, phrases),
    st.builds(speech.Publish, words, st.just("") | words, messages),
    st.builds(speech.PublishBatch, words, st.just("") | words, batches),
    st.builds(speech.Consume, phrases),
    st.builds(speech.Fetch, phrases),
    st.builds(speech.Ack, ids),
    st.builds(speech.Resend, ids),
    st.builds(speech.RegisterKey, base64s, st.none() | words),
    st.builds(speech.GetKey, phrases),
)
"""All that can be said, and heard as it was said."""

replies: st.SearchStrategy[Reply] = st.one_of(
    st.sampled_from(Said),
    st.builds(speech.Stored, ids),
    st.builds(speech.Acknowledged, ids),
    st.builds(speech.Message, ids, messages),
    st.builds(speech.PublicKey, base64s),
    st.builds(speech.Failed, reasons),
    st.builds(speech.InvalidMessage, reasons),
    st.builds(speech.InvalidBatch, reasons),
)
"""The same of replies."""

hostile_replies: st.SearchStrategy[Reply] = st.one_of(
    st.builds(speech.Stored, anything),
    st.builds(speech.Acknowledged, anything),
    st.builds(
        speech.Message, anything, st.binary(max_size=60) | anything.map(repr).map(str.encode)
    ),
    st.builds(speech.PublicKey, anything),
    st.builds(speech.Failed, anything, st.none() | anything),
    st.builds(speech.InvalidMessage, anything),
    st.builds(speech.InvalidBatch, anything),
    st.builds(speech.Other, anything),
)
"""Replies with anything in them, as a stranger might have named it."""
