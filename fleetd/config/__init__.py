"""The owner's policy: one YAML file to one typed `Policy`, or every error in it, each with its line and column.

Promises: `load` returns a valid Policy or raises PolicyError with all problems, sorted by place, each one line of the
form `file:line:column: path: what is wrong`; secrets are in none of them. Imports an adapter only when a policy names
it, APScheduler only when a schedule is there.
"""

from fleetd.config.adapters import Adapters, installed
from fleetd.config.difference import diff
from fleetd.config.editor import schema
from fleetd.config.first import first_policy
from fleetd.config.reading import load, load_text

__all__ = ["Adapters", "diff", "first_policy", "installed", "load", "load_text", "schema"]
