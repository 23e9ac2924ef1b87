"""What `dialstream doctor` finds."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    #: ``bad`` has to be mended, ``odd`` ought to be looked at.
    state: Literal["good", "odd", "bad"]
    what: str
    mend: str = ""
