"""The nodes that messages are moved between."""

from support.rabbitmq import blue, green, rabbitmq, rabbitmq_alone, rabbitmq_shared

__all__ = ["blue", "green", "rabbitmq", "rabbitmq_alone", "rabbitmq_shared"]
