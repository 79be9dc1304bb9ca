"""The configuration's file: every configuration comes back as it was, and nothing else does."""

from __future__ import annotations

import contextlib
import stat
import tomllib
from pathlib import Path

import pytest
from configurations import configurations
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ciphermq.errors import ConfigError, ProxyError
from ciphermq.proxy import config
from ciphermq.proxy.change import AddBackend, AddFarm, Map
from ciphermq.proxy.model import Backend, Configuration, Farm, Target

_SMALL = AddBackend(Backend(name="a", datacenter="d", host="h", port=1)).apply(Configuration())


@given(configurations())
def test_every_configuration_comes_back_from_toml(made: Configuration) -> None:
    assert config.loads(config.dumps(made)) == made


@given(configurations())
def test_a_configuration_does_not_differ_from_itself_however_it_was_made(
    made: Configuration,
) -> None:
    def turned(members: object) -> object:
        return dict(reversed(members.items()))  # type: ignore[attr-defined]

    other = replace(
        made,
        backends=turned(made.backends),
        farms=turned(made.farms),
        maps=turned(made.maps),
        limits=turned(made.limits),
        timeouts=turned(made.timeouts),
        listeners=tuple(reversed(made.listeners)),
    )
    assert config.dumps(config.in_order(other)) == config.dumps(made)
    assert config.diff(made, config.in_order(other)) == []


@given(configurations(), configurations())
def test_differences_are_empty_only_between_equals(
    one: Configuration, other: Configuration
) -> None:
    assert (config.diff(one, other) == []) == (one == other)


@given(st.text())
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert config.loads(config.dumps(config.loads(text))) == config.loads(text)


_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-1, 70000), st.floats(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(
    st.dictionaries(
        st.sampled_from([*Configuration.__struct_fields__, "unknown"]),
        st.one_of(
            _VALUES,
            st.dictionaries(
                st.sampled_from(["x", "conn_rate", "header"]),
                st.one_of(
                    _VALUES,
                    st.dictionaries(
                        st.sampled_from(["name", "host", "port", "farm", "backends", "default"]),
                        _VALUES,
                    ),
                ),
            ),
        ),
    )
)
def test_any_tables_are_a_configuration_or_refused(tables: dict[str, object]) -> None:
    """TOML of every shape, beyond what random text reaches."""
    text = "".join(config._table((), tables)) if None not in _leaves(tables) else ""
    try:
        made = config.loads(text)
    except ConfigError:
        return
    assert config.loads(config.dumps(made)) == made


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in _leaves(one)]
    if isinstance(value, list):
        return [leaf for one in value for leaf in _leaves(one)]
    return [value if isinstance(value, bool | int | str) else None]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("port = ", "It is not TOML: Invalid value (at end of document)"),
        ("colour = 1", "The file: Object contains unknown field `colour`"),
        (
            '[backends.a]\ndatacenter = "d"\nhost = "h"\nport = 70000',
            "backends[...].port: Expected `int` <= 65535",
        ),
        (
            '[backends.a]\nname = "b"\nhost = "h"\nport = 7',
            "'a' has its name as its key, and no other.",
        ),
        (
            '[farms.f]\nbackends = ["x"]',
            "Backend 'x' not found\nFarm not inserted due to at least one missing Backend",
        ),
        (
            (
                '[backends.a]\ndatacenter = "d"\nhost = "h"\nport = 1\n'
                '[farms.f]\nselector = "best"\nbackends = ["a"]'
            ),
            "Selector 'best' not found; there are client-hash, least-connections, round-robin.",
        ),
        ('[maps]\n"/" = "f"', 'maps./ must be { backend = "NAME" } or { farm = "NAME" }.'),
        ("[timeouts]\nheader = 0", "timeouts.header must be above 0 and at most 86400."),
        ("[timeouts]\nheader = nan", "timeouts.header must be above 0 and at most 86400."),
        ("[limits.data_rate]\ndefault = 0", "A limit is 1 to 9007199254740991, not 0."),
        (
            "[[listeners]]\nport = 1\n[[listeners]]\nport = 1\nsecure = true",
            "Port 1 is listened on already, at every address: LISTEN STOP 1 first.",
        ),
        ("console_level = 6", "console_level: Expected `int` <= 5"),
    ],
)
def test_what_can_not_be_is_said(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.loads(text)
    assert str(error.value) == complaint


def test_a_phase_that_is_none_is_told_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"timeouts\.hold is not known; there are ingress_tls, "):
        config.loads("[timeouts]\nhold = 1")


# --- as a file ---------------------------------------------------------------------------------


def test_it_is_saved_for_its_owner_only_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    config.save(path, _SMALL)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert config.load(path) == _SMALL
    assert tomllib.loads(path.read_text())["backends"] == {
        "a": {"datacenter": "d", "host": "h", "port": 1}
    }
    assert [one.name for one in tmp_path.iterdir()] == ["proxy.toml"]


def test_saving_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    config.save(tmp_path / "link", _SMALL)
    assert (tmp_path / "link").is_symlink()
    assert config.load(tmp_path / "real") == _SMALL


def test_a_file_that_can_not_be_replaced_stays_and_nothing_is_left_beside_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "proxy.toml"
    path.mkdir()
    with pytest.raises(ProxyError, match=r"proxy\.toml can't be written: Is a directory"):
        config.save(path, _SMALL)
    assert [one.name for one in tmp_path.iterdir()] == ["proxy.toml"]
    with pytest.raises(ProxyError, match="can't be written: No such file or directory"):
        config.save(tmp_path / "nowhere" / "proxy.toml", _SMALL)


def test_a_missing_file_is_an_error_unless_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    assert config.load(path, missing_ok=True) == Configuration()
    with pytest.raises(ConfigError, match="is not there: CONFIG SAVE writes it"):
        config.load(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\xff", "is not UTF-8"),
        (b"datacenter = 1", "datacenter: Expected `str`, got `int`"),
    ],
)
def test_the_file_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "proxy.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        config.load(path)
    assert str(path) in str(error.value)
    assert complaint in str(error.value)


def test_a_file_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    config.save(path, _SMALL)
    path.chmod(0o606)
    with pytest.raises(ConfigError, match="Others may write this file, so it is not believed"):
        config.load(path)


def test_differences_are_shown_as_lines_of_toml() -> None:
    file = AddFarm(Farm(name="f", backends=("a",))).apply(_SMALL)
    changed = Backend(name="a", datacenter="d", host="h", port=2)
    running = Map("a b", Target("farm", "f")).apply(AddBackend(changed, instead=True).apply(_SMALL))
    assert "".join(map(str, config.diff(file, running))) == (
        "- backends.a.port = 1\n"
        "+ backends.a.port = 2\n"
        '- farms.f.selector = "round-robin"\n'
        '- farms.f.backends = ["a"]\n'
        '+ maps."a b" = { farm = "f" }\n'
    )
