"""Where private keys live, behind two small seams: `Opener` unwraps, `Signer` signs.

Nothing above this room ever holds a private key. Keys in files are here; a key on a token needs
another `Opener` or `Signer` and nothing else.
"""
