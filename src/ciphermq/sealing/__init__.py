"""Sealing and opening batches. Only the two ends import this; CI holds the middle to that.

How the pieces hold each other::

    session key   32 fresh random bytes, used for this batch and no other
    K_body        HKDF-SHA256(session key, info "CipherMQ/2 body" | 0)
    K_commit      HKDF-SHA256(session key, info "CipherMQ/2 commit" | 0)
    P             the readable header; it names sender, certificate, receivers and K_commit
    wrap          HPKE of the session key to one receiver's public key,
                  info "CipherMQ/2 wrap" | 0 | SHA-256(P) | u16 len | receiver | u16 len | key id
    H             SHA-256(P | wraps)
    body          AES-256-GCM under K_body, nonce zero, associated data H
    signature     ECDSA by the sender's certificate key over
                  64 * 0x20 | "CipherMQ/2 batch" | 0 | H | SHA-256(body)

Both derivations have an empty salt and give 32 bytes. What each part is for:

- The wrap's info binds the session key to this P, this receiver and this key, so a wrap means
  nothing in another batch or another's place.
- AES-GCM does not commit to its key: one body can be made that opens under two keys to two texts.
  K_commit is compared before anything is opened, so all receivers read the same.
- H as associated data binds the body to the header and to all wraps, even for who would not look
  at the signature.
- Every receiver knows the session key, so each could make another body that opens. That is why the
  signature covers the body's bytes and not only what leads to its key.
- The prefix of spaces and the label keep a signature of ours from meaning anything elsewhere, as
  in TLS 1.3 (RFC 8446, section 4.4.3). `ciphermq.custody.signatures` leaves it one spelling.
- The nonce can be zero because a key has one body: a retry sends the same bytes, and any change
  takes a new batch with a new session key.

`seal` makes a batch; `verify` judges one without any private key; `open` does that first and then
opens it.
"""
