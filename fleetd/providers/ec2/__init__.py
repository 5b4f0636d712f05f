"""EC2 instances as capacity: a fleet of fleetd's own (`mode: fleet`), or an Auto Scaling group (`asg`).

Promises: nothing is launched unwritten, dearer than the pool's price, or twice; what is wrong is one line with the
pool's name, AWS's code and the fix. See docs/ec2.md. boto3 is imported when a pool is made, not when a policy is read.
"""

from typing import Any, ClassVar

from fleetd.core.model import PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.providers.ec2.options import Ec2Options


class Ec2Provider:
    """The Provider for the mode that the options name."""

    Options: ClassVar[type[Ec2Options]] = Ec2Options

    def __new__(cls, pool: PoolPolicy, options: Ec2Options, launch: WorkerLaunch) -> Any:
        """Return the mode's own class: the two share their parts, not their ways."""
        from fleetd.providers.ec2.fleet import Fleet  # noqa: PLC0415 - botocore takes a while
        from fleetd.providers.ec2.group import Group  # noqa: PLC0415

        return (Fleet if options.mode == "fleet" else Group)(pool, options, launch)
