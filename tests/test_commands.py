"""Commands in forks are what the same commands are when a user runs them."""

import subprocess

import pytest

from tests.conftest import MakeProduct
from tests.kit import call, new_leg, run, sign


def test_a_fork_has_arguments_folder_environment_pipes_and_end_of_its_own(
    make_product: MakeProduct,
) -> None:
    product = make_product()
    commands = [
        ("config", "show", "--json"),
        ("config", "show", "--nonsense"),
        ("tail", "nothing"),
        ("tail", "--from-beginning", "--json"),
        ("--help",),
    ]
    environment = {"DIALSTREAM_LOGGING__LEVEL": "error"}
    with product:
        for _ in range(3):
            assert product.post(sign(call(new_leg(), 0))).status == 204
        for arguments in commands:
            own = run(*arguments, cwd=product.folder, environment=environment)
            assert product.run(*arguments, environment=environment) == own
            assert own.output
    assert '"error"' in product.run("config", "show", "--json", environment=environment).stdout
    assert '"error"' not in product.run("config", "show", "--json").stdout


def test_what_does_not_end_in_time_is_killed(make_product: MakeProduct) -> None:
    product = make_product()
    with product, pytest.raises(subprocess.TimeoutExpired):
        product.run("tail", "--follow", timeout_s=2)
    assert product.run("config", "show").code == 0
