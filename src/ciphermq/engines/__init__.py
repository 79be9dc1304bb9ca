"""Where queues live, behind one face (`face`), whatever keeps them."""
