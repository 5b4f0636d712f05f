"""Enqueue no-op jobs for one runtime: `python -m bench.apps MODULE COUNT`, in a process of its own."""

import importlib
import sys

importlib.import_module(f"bench.apps.{sys.argv[1]}").enqueue(int(sys.argv[2]))
