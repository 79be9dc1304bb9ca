"""Private keys on a hardware token, reached through its PKCS#11 module.

What is where::

    library     python-pkcs11 and what its errors mean
    owner       the one thread that calls a module
    desk        a session on a token, and the keys found there: used by that thread only
    token       a token as the rest of the program sees it: calls from any thread, blocks
    pin         where the PIN comes from
    opener      a receiver's P-256 key: one ECDH a batch is made on the token, no more
    signer      a certificate's key: batches, key records and requests are signed on the token
    reference   the file that stands where a private key would, and says where it is
    wrapping    a secret of ours under a key-encryption key that the token holds

A token is slow, so nothing on a message's path may ask it more than once a batch. A token is taken
away and put back, so whoever needs it waits (`TokenAway`) and goes on. And a token locks itself
after a few wrong PINs, so a PIN that was refused once is not tried again.
"""
