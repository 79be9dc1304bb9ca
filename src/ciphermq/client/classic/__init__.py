"""The sender and the receiver of CipherMQ 1.x, run from the files that 1.x's were configured by.

They speak the text protocol to whatever server is there, ours or one of 1.x. What they promise, to
the letter, is what those promised: the console's lines, the file of received messages, the
dialects. What those got wrong stays out: no message is shown twice, none is acknowledged before
it is on the disk, a server's certificate is verified always, and a key that changes is told.
"""
