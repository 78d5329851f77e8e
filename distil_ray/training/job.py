"""What the launcher hands to the workers, and what they hand back.

Imports little: Ray Train's controller reads these without loading the loop, and with it transformers.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from distil_ray.config import Config
from distil_ray.data.batch import Arrays
from distil_ray.training.identity import Pins


@dataclass(frozen=True)
class Job:
    """What the launcher hands to every worker.

    Attributes:
        models: teacher, student and tokenizer, pinned.
        heldout: held-out rows, the arrays of `data.batch`; empty = no evaluation.
        sample: ids of some rows ``[B, T]``, on which the teacher is tried.
        num_groups: of the whole schedule; None = endless.
        continues_at: step at which this pass continues, where the previous pipeline ended as planned.
    """

    config: Config
    models: Pins
    heldout: Arrays
    sample: npt.NDArray[np.integer]
    num_groups: int | None
    continues_at: int | None = None


Kind = Literal["finished", "more", "moving", "again", "stopped", "bad input", "outage", "diverged", "lost"]


@dataclass(frozen=True)
class Outcome:
    """How a pass over the pipeline ended.

    ``finished``; ``more`` (to do, in another pass); ``moving`` (more, but on other nodes); ``again`` (the pipeline
    began at a checkpoint that turned out to be damaged); ``stopped`` (as the driver wanted); or a failure, by the error
    to raise: ``bad input``, ``outage``, ``diverged`` or ``lost`` (the run's folder, to another command).

    Attributes:
        message: of a failure.
        step: updates done and saved.
    """

    kind: Kind
    message: str = ""
    step: int = 0
