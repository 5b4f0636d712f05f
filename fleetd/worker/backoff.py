"""How long to wait before trying again."""

import random


def backoff_s(failures: int, cap_s: float = 10.0) -> float:
    """Seconds to wait after so many failures in a row: doubling, capped, and spread by chance."""
    return float(min(cap_s, 0.1 * 2 ** min(failures, 16)) * random.uniform(0.5, 1.0))  # noqa: S311
