"""Asyncio connections to Gearman dispatchers. Each is one connection's life; reconnecting is its owner's choice."""
