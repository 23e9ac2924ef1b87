"""Who and what the simulated company is, and whom it talks to. Its size makes it, and no chance.

Every number is one that is kept for fiction: 555-0100 to 555-0199 of each area.
"""

from dataclasses import dataclass

from ingest.simulator.facts import Centre, Department, Host, Member, Office, Outsider

_ID = 5_000_000_000_000_000
_FIRST_NAMES = (
    *("Ada", "Ben", "Cleo", "Dev", "Elin", "Femi", "Gus", "Hana", "Ivo", "June", "Kofi", "Lena"),
    *("Maya", "Nils", "Omar", "Pia", "Quinn", "Rosa", "Sami", "Tess", "Uma", "Vito", "Wren"),
)
_LAST_NAMES = (
    *("Marsh", "Okoye", "Tanaka", "Rao", "Berg", "Cole", "Ortiz", "Vidal", "Lund", "Adeyemi"),
    *("Fox", "Haddad", "Ito", "Jansen", "Kaur", "Lopez", "Mori", "Novak", "Olsen", "Petit"),
    *("Quist", "Reyes", "Silva", "Toth", "Unger", "Varga", "Weiss", "Young", "Zeman"),
)
_FIRMS = ("Prints", "& Sons", "Foods", "Motors", "Garden Centre", "Bakery")
_JOBS = ("Buyer", "Owner", "", "Driver")
_CENTRE_NAMES = ("Support", "Orders", "Billing", "Repairs", "Returns", "Claims")
_DEPARTMENT_NAMES = ("Sales", "Accounts", "Stores")
_OUR_AREAS = (415, 628, 510, 650, 408, 669, 707, 925, 831, 209, 530, 559, 661, 805, 818, 323)
_THEIR_AREAS = (
    *(212, 303, 206, 617, 312, 503, 713, 404, 201, 202, 203, 205, 207, 208, 210, 213, 214, 215),
    *(216, 217, 218, 219, 224, 225, 228, 229, 231, 234, 239, 240, 248, 251, 252, 253, 254, 256),
    *(260, 262, 267, 269, 270, 276, 281, 301, 302, 304, 305, 307, 308, 309, 310, 313, 314, 315),
    *(316, 317, 318, 319, 320, 321, 325, 330, 334, 336, 337, 339, 347, 351, 352, 360, 361, 386),
)
#: Of contacts that are made while the story goes on.
NEW_AREA = 720


@dataclass(frozen=True, slots=True)
class Number:
    """One of the company's numbers, and where it leads."""

    number: str
    host: Host


@dataclass(frozen=True, slots=True)
class Company:
    id: int
    name: str
    offices: tuple[Office, ...]
    departments: tuple[Department, ...]
    centres: tuple[Centre, ...]
    #: Those who take calls.
    members: tuple[Member, ...]
    admin: Member
    #: By member id, the centres that they are in when the story begins.
    centres_of: dict[int, tuple[Centre, ...]]
    #: People who call; those with names are its contacts when the story begins.
    outsiders: tuple[Outsider, ...]

    @property
    def users(self) -> tuple[Member, ...]:
        return (*self.members, self.admin)

    @property
    def numbers(self) -> tuple[Number, ...]:
        hosts: tuple[Host, ...] = (
            *self.offices,
            *self.departments,
            *self.centres,
            *self.users,
        )
        return tuple(Number(host.number, host) for host in hosts)


def make_company(members: int, outsiders: int) -> Company:
    """Make a company of so many members: one office per hundred, and some 20 to a centre.

    Raises ValueError for more than there are numbers for.
    """
    offices = 1 + members // 100
    centres = max(2, members // 20)
    numbers = (_number(_OUR_AREAS, nth) for nth in range(100 * len(_OUR_AREAS)))
    if 2 * offices + centres + members + 1 > 100 * len(_OUR_AREAS):
        raise ValueError(f"{members} members are too many")
    if outsiders > 100 * len(_THEIR_AREAS):
        raise ValueError(f"{outsiders} outsiders are too many")
    of_offices = tuple(
        Office(_ID + 100 + nth, f"Office {nth + 1}", next(numbers)) for nth in range(offices)
    )
    of_departments = tuple(
        Department(_ID + 2_100 + nth, _nth_name(_DEPARTMENT_NAMES, nth), next(numbers), office.id)
        for nth, office in enumerate(of_offices)
    )
    of_centres = tuple(
        Centre(
            _ID + 3_100 + nth,
            _nth_name(_CENTRE_NAMES, nth),
            next(numbers),
            of_offices[nth % offices].id,
        )
        for nth in range(centres)
    )
    of_members = tuple(
        _member(nth, next(numbers), of_offices[nth % offices]) for nth in range(members)
    )
    # The last of seven is in no centre: there are such people.
    centres_of = {
        member.id: ()
        if nth % 7 == 6  # noqa: PLR2004
        else tuple(dict.fromkeys((of_centres[nth % centres], of_centres[nth * nth % centres])))
        for nth, member in enumerate(of_members)
    }
    return Company(
        id=_ID + 1,
        name="Example Ltd",
        offices=of_offices,
        departments=of_departments,
        centres=of_centres,
        members=of_members,
        admin=Member(
            _ID + 30_099,
            "Pat Admin",
            "pat.admin@example.com",
            next(numbers),
            of_offices[0].id,
            admin=True,
        ),
        centres_of=centres_of,
        outsiders=tuple(map(_outsider, range(outsiders))),
    )


def _member(nth: int, number: str, office: Office) -> Member:
    name = _person(nth)
    again = f".{nth}" if nth >= len(_FIRST_NAMES) else ""
    email = f"{name.lower().replace(' ', '.')}{again}@example.com"
    return Member(_ID + 30_100 + nth, name, email, number, office.id)


def _outsider(nth: int) -> Outsider:
    ident, number = _ID + 900_100 + nth, _number(_THEIR_AREAS, nth * 37 % (100 * len(_THEIR_AREAS)))
    if nth % 8 in {4, 5, 7}:
        return Outsider(ident, number)
    first_name, last_name = _person(nth + 11).split(" ")
    return Outsider(
        ident,
        number,
        first_name,
        last_name,
        "" if nth % 4 == 1 else f"{first_name.lower()}.{nth}@{last_name.lower()}.example",
        f"{last_name} {_FIRMS[nth % len(_FIRMS)]}",
        _JOBS[nth % len(_JOBS)],
    )


def _person(nth: int) -> str:
    first, last = nth % len(_FIRST_NAMES), (nth + nth // len(_FIRST_NAMES)) % len(_LAST_NAMES)
    return f"{_FIRST_NAMES[first]} {_LAST_NAMES[last]}"


def _nth_name(names: tuple[str, ...], nth: int) -> str:
    """Support, Orders, ..., Support 2, ..."""
    again, which = divmod(nth, len(names))
    return f"{names[which]} {again + 1}" if again else names[which]


def _number(areas: tuple[int, ...], nth: int) -> str:
    return fictional_number(areas[nth // 100], nth % 100)


def fictional_number(area: int, nth: int) -> str:
    """One of the hundred of each area that are never given out."""
    return f"+1{area}5550{100 + nth}"
