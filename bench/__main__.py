"""The benchmarks by name: `python -m bench NAME [options]` runs one, `python -m bench` all that take minutes.

Each is a module of this package with `main(argv) -> exit code`; `python -m bench NAME --help` tells its options.
"""

import argparse
import importlib
import importlib.util
import sys

KNOWN = {
    "runtimes": "no-op jobs a second, CPU and memory: fleetd beside Celery, RQ, dramatiq and Huey",
    "dispatcher": "the embedded dispatcher beside gearmand: submits, durability, memory, workers",
    "policy": "what the decisions cost on given traces, beside peers and the clairvoyant bound (needs their folder)",
    "decisions": "how fast decisions and simulations are",
    "scrape": "how long a scrape of the metrics takes, and how many series it has",
    "ec2": "instances on moto: launches in bad weather, interruptions, budget, stockout, calls per tick; half an hour",
    "kube": "pods on a real control plane: a burst, scale-ins under load, a thousand pods (builds it once)",
    "boot": "200 machines that boot at the same time from the boot service, beside nginx",
    "rack": "a rack of qemu machines end to end: boots of each kind, a rush, what goes wrong; root, ten minutes",
    "burst": "thousands of jobs while workers, nodes and the controller are killed",
    "reload": "releases activated under load, every fifth broken; Celery, RQ and dramatiq beside; memory; fifty nodes",
    "files": "2 GiB through the file store to a worker and back, killed half way; deadlines; a batch of 10,000 jobs",
    "foreign": "Celery, RQ and Perl through rushes, drained while they run jobs: what scale-in kills",
    "faults": "what becomes of each job where a slot, its memory, the disk or the dispatcher fails",
}
LONG = ("policy", "reload", "files", "faults", "boot", "rack", "ec2", "foreign")  # each with a make target of its own


def main(argv: list[str]) -> int:
    """Run what is asked for; the worst exit code is returned."""
    there = [name for name in KNOWN if importlib.util.find_spec(f"bench.{name}")]
    listing = "\n".join(f"  {name:10} {KNOWN[name]}" for name in there)
    parser = argparse.ArgumentParser(
        prog="bench",
        usage="python -m bench [NAME [OPTIONS]]",
        description="Run one benchmark, or all that do not take long.",
        epilog=f"benchmarks:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = f"all but {', '.join(LONG)}"
    parser.add_argument("name", nargs="?", choices=there, metavar="NAME", help=f"which one (default: {default})")
    given = parser.parse_args(argv[:1])
    if given.name:
        return int(importlib.import_module(f"bench.{given.name}").main(argv[1:]))
    worst = 0
    for name in [name for name in there if name not in LONG]:
        print(f"# {name}", flush=True)
        worst = max(worst, int(importlib.import_module(f"bench.{name}").main([])))
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
