"""AMQP 0.9.1 as far as a proxy needs it: frames, the handshake of both sides, closing.

``frame = u8 type | u16 channel | u32 size | size bytes | 0xCE`` (specification section 4.2.3).
Method bodies are read and written here by hand where bytes must stay exactly as they were, and
built with pamqp where they are our own.
"""
