"""What was found, of one seed or of several, and the table of it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

#: Of all calls, at most.
MOST_AMBIGUOUS = 0.002

WORDS = ("matched", "late", "mismatch", "push_missing", "record_missing", "ambiguous")


def _wrong() -> defaultdict[str, list[str]]:
    return defaultdict(list)


@dataclass(slots=True)
class Found:
    """`problems` says in words what must not be."""

    legs: int = 0
    conversations: int = 0
    pushes: int = 0
    rows: int = 0
    #: Nothing of them ever reached us, so nobody can know of them.
    unknowable: int = 0
    in_ledger: int = 0
    #: Calls that are to have a verdict, those that have the right one, and what it is.
    judged: int = 0
    right: int = 0
    words: Counter[str] = field(default_factory=Counter)
    #: The same of what both providers have seen, or one of them.
    pair_judged: int = 0
    pair_right: int = 0
    pair_words: Counter[str] = field(default_factory=Counter)
    #: Calls that cannot be told from others by their clocks.
    ties: int = 0
    false_matches: int = 0
    #: Those that a later verdict has taken back.
    false_for_a_while: int = 0
    ledger_repeats: int = 0
    lost_endings: int = 0
    mended: int = 0
    hours: int = 0
    hours_right: int = 0
    gaps: int = 0
    worst_gap_s: float = 0.0
    #: Without the time in which the poller was waiting for answers.
    worst_gap_net_s: float = 0.0
    lives: int = 0
    cpu_s: float = 0.0
    #: What must not be → where it is.
    wrong: defaultdict[str, list[str]] = field(default_factory=_wrong)

    @property
    def problems(self) -> list[str]:
        """Empty if nothing is wrong."""
        found = [
            f"{len(places)} {what}, first {'; '.join(places[:3])}"
            for what, places in sorted(self.wrong.items())
            if places
        ]
        if self.pair_words["ambiguous"] > MOST_AMBIGUOUS * self.legs:
            found.append(f"{self.pair_words['ambiguous']} calls are ambiguous")
        return found


def together(found: Sequence[Found]) -> Found:
    """The sum of them, and the worst."""
    whole = Found()
    for each in found:
        for name in each.__slots__:
            mine, more = getattr(whole, name), getattr(each, name)
            if name == "wrong":
                for what, places in more.items():
                    whole.wrong[what] += places
            elif name.startswith("worst"):
                setattr(whole, name, max(mine, more))
            else:
                setattr(whole, name, mine + more)
    return whole


def table(names: Sequence[str], found: Sequence[Found]) -> str:
    """A column for each."""
    lines: list[tuple[str, Callable[[Found], str]]] = [
        ("calls (legs)", lambda it: f"{it.legs:,}"),
        ("  conversations", lambda it: f"{it.conversations:,}"),
        ("  pushes", lambda it: f"{it.pushes:,}"),
        ("  Dialgood's records", lambda it: f"{it.rows:,}"),
        ("nothing of them reached us", lambda it: f"{it.unknowable:,}"),
        ("in the ledger", lambda it: _share(it.in_ledger, it.legs - it.unknowable)),
        ("one final verdict, the right one", lambda it: _share(it.right, it.judged)),
        *_words("words"),
        ("the same across the pair", lambda it: _share(it.pair_right, it.pair_judged)),
        *_words("pair_words"),
        ("ambiguous, of all calls", lambda it: _share(it.pair_words["ambiguous"], it.legs)),
        ("two candidates in the margin", lambda it: f"{it.ties:,}"),
        ("false matches", lambda it: f"{it.false_matches:,}"),
        ("  taken back", lambda it: f"{it.false_for_a_while:,}"),
        ("repeats in the ledger", lambda it: f"{it.ledger_repeats:,}"),
        ("lost endings", lambda it: f"{it.lost_endings:,}"),
        ("  mended", lambda it: _share(it.mended, it.lost_endings)),
        ("hours", lambda it: f"{it.hours:,}"),
        ("  as the truth has them", lambda it: _share(it.hours_right, it.hours)),
        ("gaps", lambda it: f"{it.gaps:,}"),
        ("  longest until closed, s", lambda it: f"{it.worst_gap_s:.0f}"),
        ("  without passes under way, s", lambda it: f"{it.worst_gap_net_s:.0f}"),
        ("lives of the reconciler", lambda it: f"{it.lives:,}"),
        ("CPU, s", lambda it: f"{it.cpu_s:.0f}"),
        ("problems", lambda it: f"{len(it.problems)}"),
    ]
    rows = [("", *names), *((what, *(show(each) for each in found)) for what, show in lines)]
    return "\n".join(
        f"{what:<34}" + "".join(f"{cell:>12}" for cell in cells) for what, *cells in rows
    )


def _words(name: str) -> list[tuple[str, Callable[[Found], str]]]:
    def show(word: str) -> Callable[[Found], str]:
        return lambda it: f"{getattr(it, name)[word]:,}"

    return [(f"  {word}", show(word)) for word in WORDS]


def _share(part: int, whole: int) -> str:
    """It is 100 % only if it is all of it."""
    if not whole:
        return "-"
    text = f"{100 * part / whole:.3f} %"
    return "100 %" if part == whole else text.replace("100.000", "99.999")
