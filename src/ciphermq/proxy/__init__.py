"""The AMQP 0.9.1 proxy: routes each virtual host to its broker or farm. It stands alone."""
