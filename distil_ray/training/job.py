"""What the launcher hands to the workers, and what they hand back.

Imports little: Ray Train's controller reads these, and shall not load the loop and with it transformers.
"""

from dataclasses import dataclass

from distil_ray.config import Config
from distil_ray.data.batch import Arrays
from distil_ray.training.events import Line
from distil_ray.training.lease import Claim


@dataclass(frozen=True)
class Job:
    """What the launcher hands to every worker.

    Attributes:
        heldout: held-out rows, the arrays of `data.batch`; empty = no evaluation.
        num_groups: of the whole schedule; None = endless.
        claim: without which nothing may be written.
        continues_at: step at which this pass goes on, as planned, where the pipeline before it ended.
    """

    config: Config
    heldout: Arrays
    num_groups: int | None
    events: Line
    claim: Claim
    continues_at: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a pass over the pipeline ended.

    ``finished``; ``more`` (to do, in another pass); ``moving`` (more, but on other nodes); ``stopped`` (as the driver
    wanted) or ``failed``.
    """

    kind: str
    message: str = ""
    is_input_error: bool = False
    step: int = 0
