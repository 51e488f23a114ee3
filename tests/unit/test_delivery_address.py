"""URLs of server back ends."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from vista.delivery.address import Address
from vista.delivery.catalog import open_catalog
from vista.delivery.log import open_log
from vista.delivery.store import open_store
from vista.errors import InputError

OPTIONS = frozenset({"password_file", "ca"})


def test_all_parts(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("p@ss: word\n")
    url = f"kafkas://vista@one:9092,[::1]:9093/summaries?password_file={secret}&ca=/etc/ca.pem"
    address = Address.parse(url, options=OPTIONS)
    assert (address.scheme, address.user, address.name) == ("kafkas", "vista", "summaries")
    assert address.hosts == (("one", 9092), ("::1", 9093))
    assert address.options["ca"] == "/etc/ca.pem"
    assert address.password() == "p@ss: word"


def test_least_parts() -> None:
    address = Address.parse("redis://localhost:6379", options=OPTIONS)
    assert (address.hosts, address.name, address.user, address.password()) == (
        (("localhost", 6379),),
        "",
        "",
        None,
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://localhost", "'localhost' is no host:port"),
        ("redis://localhost:70000", "'localhost:70000' is no host:port"),
        ("redis://:6379", "':6379' is no host:port"),
        ("kafka://a:1,,b:2/topic", "'' is no host:port"),
        ("redis://a:1?pasword_file=x", "option 'pasword_file' is unknown; known are ca, password_file"),
    ],
)
def test_what_cannot_be_used_is_named(url: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        Address.parse(url, options=OPTIONS)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "password", ["hunter2", "hunter/2", "hunter?2", "hunter#2", "12/hunter", ":hunter@2"]
)
def test_a_password_in_a_url_is_refused_and_not_repeated(password: str) -> None:
    with pytest.raises(InputError) as refused:
        open_store(f"redis://vista:{password}@localhost:6379", 4)
    assert "hunter" not in str(refused.value)
    assert "redis://vista:...@localhost:6379" in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["redis://a:1?password=hunter2", "postgresql://vista:hunter2@a:1/x", "amqp://a:1?password=hunter2"],
)
@pytest.mark.parametrize("opened", [open_catalog, open_log, partial(open_store, buckets=4)])
def test_what_is_unknown_of_a_url_repeats_no_password(opened: Callable[[str], object], url: str) -> None:
    with pytest.raises(InputError, match="unknown") as refused:
        opened(url)
    assert "hunter2" not in str(refused.value)


def test_a_password_file_may_have_any_name() -> None:
    address = Address.parse("redis://a:1?password_file=/x:y/z@home", options=OPTIONS)
    assert address.options == {"password_file": "/x:y/z@home"}


def test_a_missing_password_file_is_named(tmp_path: Path) -> None:
    address = Address.parse(f"redis://a:1?password_file={tmp_path}/none", options=OPTIONS)
    with pytest.raises(InputError, match="password_file cannot be read"):
        address.password()
