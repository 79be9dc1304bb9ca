"""The nodes that the proxy's tests put behind it."""

from support.rabbitmq import blue, green, rabbitmq, rabbitmq_alone, rabbitmq_shared

__all__ = ["blue", "green", "rabbitmq", "rabbitmq_alone", "rabbitmq_shared"]
