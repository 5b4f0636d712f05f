"""The first policy file: what `fleetd init` writes.

Promises: small, commented and valid as it is, once the app's folder is there.
"""

import json
from typing import Final

_TEXT: Final = """\
# A fleetd policy: which jobs there are, what runs them, and where workers may run.
# Check it with `fleetd check`; every key is explained in docs/policy.md.
version: 1
fleet: {fleet}

# Where jobs wait: a small dispatcher of fleetd's own. For your Gearman servers write instead
# gearman: {{servers: ["10.0.0.5:4730"]}}
sources:
  main:
    gearman: {{embedded: {listen}}}

# What runs them: a folder of Python code with functions marked @job.
apps:
  {app}:
    release: {{path: {path}}}

# Which jobs, and how long they may wait before one starts.
queues:
  {queue}:
    app: {app}
    source: main
    match: {match}               # a glob over the names of job functions
    objective: {{wait: 10s, share: 95%}}
    job_limit: 5m                # a job that runs longer is ended

# Where workers run. Here: processes on this machine, none while there is nothing to do.
pools:
  local:
    process: {{}}
    apps: [{app}]
    slots: 1                     # jobs that one worker runs at a time
    min: 0
    max: 4
"""


def first_policy(
    *,
    fleet: str = "first",
    app: str = "app",
    path: str = "app",
    queue: str = "greet",
    match: str = "greet",
    listen: str = "127.0.0.1:4730",
) -> str:
    """Return the text of a first policy; `path` is the app's folder beside it, `match` the name of its jobs."""
    names = {"fleet": fleet, "app": app, "queue": queue}
    texts = {"path": path, "match": match, "listen": listen}
    return _TEXT.format(**names, **{key: json.dumps(text, ensure_ascii=False) for key, text in texts.items()})
