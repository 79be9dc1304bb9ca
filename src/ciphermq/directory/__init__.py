"""Key records: made and signed by their owner, verified by whoever would seal to them."""
