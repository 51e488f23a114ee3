"""URLs of server back ends."""

from pathlib import Path

import pytest

from vista.delivery.address import Address
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


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as refused:
        Address.parse("redis://vista:hunter2@localhost:6379", options=OPTIONS)
    assert "password_file" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_missing_password_file_is_named(tmp_path: Path) -> None:
    address = Address.parse(f"redis://a:1?password_file={tmp_path}/none", options=OPTIONS)
    with pytest.raises(InputError, match="password_file cannot be read"):
        address.password()
