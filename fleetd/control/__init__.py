"""The asyncio shell around the pure core: observe, decide, write down, act."""
