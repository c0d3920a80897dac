"""Acknowledging in the caller's transaction: a message is done exactly when what was written for it is committed."""

from __future__ import annotations

from ..engine.plan import Plan
from ..errors import InvalidArgument, MessageLost, SubscriptionError
from .member import acknowledge
from .values import AsyncMessage, Held, Message


def ack(message: Message | AsyncMessage) -> Plan[None]:
    """Acknowledge a message with this transaction: both happen or neither.

    What the transaction writes happens exactly once for the message then, whoever is killed when.

    Raises:
        MessageLost: this member does not hold it any more. Roll back: somebody else may have it by now.
        SubscriptionError: it is a broadcast's.
    """
    if not isinstance(message, Message | AsyncMessage):
        raise InvalidArgument(f"message={message!r} must be a message of a durable subscription")
    if message._held is None:
        raise SubscriptionError("a broadcast's message is not acknowledged: subscribe(..., name=...) makes it durable")
    if message._held.ends_itself:
        raise SubscriptionError("this handler is transactional: its transaction acknowledges the message by itself")
    yield from end(message._held)
    message._held.tried = True
    message._held.let_go()


def end(held: Held) -> Plan[None]:
    """Acknowledge what is held, or raise."""
    if held.lost or (yield from acknowledge([held]))[0]:
        raise MessageLost(
            f"message {held.position} is not this member's any more: its lease was lost, or somebody moved the "
            "subscription; nothing of this transaction may be committed"
        )
