"""No request path of ours can ever be that of an agent's credentials."""

import ast
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.api import ApiError
from ingest.providers.dialgood.api import can_be_asked
from ingest.providers.dialgood.assumptions import Assumptions
from ingest.providers.dialgood.records import DialgoodRecords
from tests.ingest.providers.dialgood.model import Wire, api_on, json_answer
from tests.kit import PROJECT

PACKAGE = PROJECT / "ingest" / "providers" / "dialgood"

WORD = "credentials"

#: In letters of full width, which some servers take for these.
WIDE = "".join(chr(ord(letter) + 0xFEE0) for letter in WORD)

NOTHING = {"data": [], "agents": [], "versions": [], "totalPages": 0, "totalRecords": 0}

#: What hostile ids are made of.
_PIECES = st.sampled_from(
    [
        WORD,
        WORD.upper(),
        "Credentials",
        WIDE,
        "credent\u0131als",
        "credential\u017f",
        "cred",
        "entials",
        "agent_0001",
        "a",
        "/",
        "//",
        "\\",
        "..",
        ".",
        "...",
        ";",
        "?",
        "#",
        "&",
        "%",
        "%2F",
        "%2f",
        "%252F",
        "%25252F",
        "%5C",
        "%2e",
        "%2e%2e",
        "%3B",
        "%3F",
        "%63redentials",
        "%2563redentials",
        "%00",
        "\0",
        "\n",
        "\t",
        " ",
        "\u00a0",
        "\u00ad",
        "\u200b",
        "\u2024",
        "\u2044",
        "\u2215",
        "\uff0f",
        "\uff05",
        "\ud800",
        "call-logs",
        "versions",
        "partner",
        "@",
        ":",
        "http://",
    ]
)
HOSTILE = st.one_of(st.lists(_PIECES, max_size=8).map("".join), st.text(max_size=40))


def readings(target: str) -> Iterator[list[str]]:
    """The segments that servers of various carelessness find in a request's target."""
    path = target.partition("?")[0]
    for _ in range(5):
        for text in (path, unicodedata.normalize("NFKC", path)):
            for folded in (text, text.lower(), text.upper().lower(), text.casefold()):
                for cut in (folded, re.sub(r"[\x00-\x20\x7f\u00ad\u200b]", "", folded)):
                    yield from _segments(cut)
        path = unquote(path)


def _segments(path: str) -> Iterator[list[str]]:
    for separators in ("/", "/\\", "/\\;?#"):
        whole = re.split(f"[{re.escape(separators)}]", path)
        for parts in (whole, [part.partition(";")[0] for part in whole]):
            plain = [part.strip(" .") or part for part in parts]
            yield plain
            there: list[str] = []
            for part in plain:
                if part == "..":
                    del there[-1:]
                elif part not in ("", "."):
                    there.append(part)
            yield there


def test_what_servers_may_make_of_a_path_is_found() -> None:
    for target in (
        "/agents/credentials",
        "/agents/a%2Fcredentials/call-logs",
        "/agents/a%252fCREDENTIALS%3Fx/call-logs",
        "/agents/a//credentials;v=1/call-logs",
        "/agents/a/x/..%5ccredentials",
        "/agents/%EF%BD%83redentials/call-logs",
    ):
        assert any(WORD in segments for segments in readings(target)), target


async def ask_all(agent_id: str) -> tuple[list[str], list[ApiError]]:
    """Everything that can be asked of an agent; what went out, and what did not."""
    wire = Wire(lambda _: json_answer(NOTHING))
    api = api_on(wire)
    records = DialgoodRecords("bots", None, api, Assumptions())
    errors = []
    for pages in (
        api.call_logs(agent_id, 1, 2),
        api.versions(agent_id),
        records.calls_of(agent_id, 1, 2, "poll"),
        records.versions_of(agent_id, "poll"),
    ):
        try:
            async for _ in pages:
                pass
        except ApiError as error:
            errors.append(error)
    return wire.targets, errors


@given(HOSTILE)
async def test_no_id_leads_to_credentials(agent_id: str) -> None:
    targets, errors = await ask_all(agent_id)
    assert bool(targets) != bool(errors)
    assert {error.reason for error in errors} <= {"unexpected"}
    assert not any(WORD in str(error).lower() for error in errors)
    for target in targets:
        assert re.fullmatch(r"/partner/v1/agents/[^/?]+/(call-logs|versions)\?.*", target)
        assert not any(WORD in segments for segments in readings(target))
        # However often it is decoded, it is one segment of the agent's and nothing else.
        assert {len(segments) for segments in readings(target) if "partner" in segments} <= {5, 6}


@given(HOSTILE)
async def test_ids_that_the_server_lists_are_asked_or_rejected(agent_id: str) -> None:
    listed = {"agents": [{"agentId": agent_id}], "totalCount": 1, "hasMore": False}
    wire = Wire(lambda r: json_answer(listed if r.url.path.endswith("/agents") else NOTHING))
    records = DialgoodRecords("bots", None, api_on(wire), Assumptions())
    if not agent_id.isprintable() or "\ud800" in agent_id:
        return  # not in JSON, or no id
    (event,) = [event async for page in records.agents("poll") for event in page]
    assert (event.subject_kind == "directory") == (can_be_asked(agent_id) and agent_id != "0")
    for _ in [page async for page in records.calls(1, 2, "poll")]:
        pass
    for _ in [page async for page in records.also("versions", [], "poll")]:
        pass
    for target in wire.targets:
        assert not any(WORD in segments for segments in readings(target))


@pytest.mark.parametrize(
    ("agent_id", "segment"),
    [
        ("agent_0001", "agent_0001"),
        ("650c1f1e1c9d440000000000", "650c1f1e1c9d440000000000"),
        ("5f0c-aa.b~c", "5f0c-aa.b~c"),
        ("a b", "a%20b"),
        ("a:b@c+d&e=f", "a%3Ab%40c%2Bd%26e%3Df"),
        ("\u00fc", "%C3%BC"),
        ("cred", "cred"),
    ],
)
async def test_an_id_is_one_segment(agent_id: str, segment: str) -> None:
    targets, errors = await ask_all(agent_id)
    assert errors == []
    assert {target.partition("?")[0] for target in targets} == {
        f"/partner/v1/agents/{segment}/call-logs",
        f"/partner/v1/agents/{segment}/versions",
    }


@pytest.mark.parametrize(
    "agent_id",
    [
        "",
        ".",
        "..",
        "...",
        " ",
        "\u200b",
        ".\u200b.",
        "/",
        "a/b",
        "a\\b",
        "a?b",
        "a#b",
        "a;b",
        "100%",
        "%2e%2e",
        "%252e%252e",
        "a%2Fb",
        "a\nb",
        "\ud800",
        WORD,
        WORD.upper(),
        f"my-{WORD}",
        "%63redentials",
        "cre\u00addentials",
        "\uff05\uff12\uff26" * 2,
        quote(quote(quote(quote(quote(quote(quote(quote(quote("/", safe=""))))))))),
    ],
)
async def test_such_ids_are_not_asked(agent_id: str) -> None:
    targets, errors = await ask_all(agent_id)
    assert targets == []
    assert [error.reason for error in errors] == ["unexpected"] * 4


def constants(path: Path) -> Iterator[str]:
    """Texts in the code, docstrings left out."""
    tree = ast.parse(path.read_text())
    said = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def test_the_word_stands_in_the_guard_and_nowhere_else() -> None:
    found = [
        (path.name, text)
        for path in sorted(PACKAGE.glob("*.py"))
        for text in constants(path)
        if WORD in text.lower() or "credential" in text.lower()
    ]
    assert found == [("api.py", WORD)]


def test_everything_that_is_asked_goes_through_the_guard() -> None:
    asked = []
    for path in sorted(PACKAGE.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("ask", "_exchange", "_http"):
                asked.append(path.name)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._api.ask":
                method, where = node.args
                assert ast.unparse(method) == "'GET'"
                assert isinstance(where, ast.Call)
                assert ast.unparse(where.func) == "checked"
    assert asked == ["api.py"]
