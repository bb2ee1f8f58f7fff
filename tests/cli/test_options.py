"""Flags come from dataclass fields; flag > VL2_<FIELD> > default."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.cli.conftest import Result
from vl2.cli.options import SAMPLING_HELP, describe, options, sampling_options
from vl2.cli.reference import render
from vl2.core.config import EngineConfig, HubOptions, ProcessorConfig, ServerConfig, check_options, option
from vl2.core.errors import SetupError
from vl2.core.secret import Secret
from vl2.core.types import SamplingParams


@dataclass(frozen=True)
class Toy:
    size: int = option(3, "How big.")
    share: float = option(0.5, "How much.")
    name: str | None = option(None, "Who.")
    colour: str = option("red", "Which.", choices=("red", "blue"))
    key: tuple[Secret, ...] = option((), "Keys.")
    is_loud: bool = option(False, "Whether.")


@pytest.fixture
def toy() -> Callable[..., Toy]:
    def parse(*args: str, **env: str) -> Toy:
        taken: list[Toy] = []

        @click.command()
        @options(toy=Toy)
        def command(toy: Toy) -> None:
            taken.append(toy)

        result = CliRunner().invoke(command, args, env=env, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return taken[0]

    return parse


def test_without_flags_all_are_defaults(toy: Callable[..., Toy]) -> None:
    assert toy() == Toy()


def test_every_kind_of_field_has_a_flag(toy: Callable[..., Toy]) -> None:
    flags = "--size 4 --share 0.25 --name ada --colour blue --key a --key b --is-loud".split()
    assert toy(*flags) == Toy(4, 0.25, "ada", "blue", (Secret("a"), Secret("b")), True)


def test_every_kind_of_field_has_a_variable(toy: Callable[..., Toy]) -> None:
    variables = dict(VL2_SIZE="4", VL2_NAME="ada", VL2_COLOUR="blue", VL2_KEY="a b", VL2_IS_LOUD="true")
    assert toy(**variables) == Toy(4, 0.5, "ada", "blue", (Secret("a"), Secret("b")), True)


def test_a_flag_wins_over_its_variable(toy: Callable[..., Toy]) -> None:
    assert toy("--size", "5", "--no-is-loud", VL2_SIZE="4", VL2_IS_LOUD="1") == Toy(size=5)


@pytest.mark.parametrize("config", [EngineConfig, ProcessorConfig, ServerConfig, HubOptions])
def test_every_option_of_vl2_explains_itself(config: type[Any]) -> None:
    for field in dataclasses.fields(config):
        if field.name == "replica_idx":  # no flag: set for each replica by the program
            continue
        assert field.metadata["help"].endswith("."), field.name
        assert not field.metadata["choices"] or field.default in field.metadata["choices"], field.name


def test_no_two_configs_share_a_name() -> None:
    names = [f.name for c in (EngineConfig, ProcessorConfig, ServerConfig, HubOptions) for f in dataclasses.fields(c)]
    assert len(names) == len(set(names))
    assert not set(names) & set(SAMPLING_HELP)


def test_sampling_flags_default_to_sampling_params() -> None:
    taken: list[SamplingParams] = []
    command = click.command()(sampling_options(lambda params: taken.append(params)))
    CliRunner().invoke(command, [], catch_exceptions=False)
    CliRunner().invoke(command, ["--temperature", "0.4", "--stop", "a", "--stop", "b"], catch_exceptions=False)
    assert taken == [SamplingParams(), SamplingParams(temperature=0.4, stop=("a", "b"))]


def test_secrets_are_not_described(toy: Callable[..., Toy]) -> None:
    given = toy("--key", "hush", "--key", "hush2")
    assert [key.reveal() for key in given.key] == ["hush", "hush2"]
    assert describe(toy=given) == "key=(***, ***)"


def test_only_what_differs_from_its_default_is_described() -> None:
    assert describe(toy=Toy(size=4, is_loud=True)) == "size=4 is_loud=True"


@pytest.mark.parametrize(
    ("flag", "value", "rule"),
    [
        ("--max-sequences", "0", "between 1 and 4096"),
        ("--kv-memory-share", "2", "between 0.01 and 1"),
        ("--kv-memory-share", "nan", "between 0.01 and 1"),
        ("--threads", "0", "between 1 and 1024"),
        ("--drain-timeout-s", "-1", "between 0 and 86400"),
        ("--page-size-tokens", "7", "a power of two from 1 to 1024"),
        ("--port", "70000", "between 0 and 65535"),
        ("--max-context-tokens", "8", "at least 64"),
        ("--replicas", "0", "between 1 and 64"),
        ("--max-image-bytes", "0", "at least 1"),
    ],
)
def test_a_value_out_of_range_is_one_line_with_flag_value_and_range(
    vl2: Callable[..., Result], flag: str, value: str, rule: str
) -> None:
    result = vl2("serve", flag, value)
    assert (result.code, result.stderr) == (2, f"error: {flag} is {value}, but must be {rule}\n")


def test_defaults_obey_their_rules() -> None:
    check_options(EngineConfig(), ProcessorConfig(), ServerConfig(), HubOptions())
    with pytest.raises(SetupError, match="--device is tpu, but must be one of auto, cpu, cuda"):
        check_options(EngineConfig(device="tpu"))


def test_the_reference_shows_defaults_that_are_zero_or_on() -> None:
    rows = {line.split("`")[1]: line for line in render().splitlines() if line.startswith("| `--")}
    for flag, default in {"--temperature": "0.0", "--top-k": "0", "--prefix-cache": "on", "--offline": "off"}.items():
        assert f"| `{default}` |" in rows[flag]
    assert "off" not in rows["--json"]
