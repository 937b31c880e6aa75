"""Where receivers may be."""

from __future__ import annotations

import ipaddress

import pytest

from collector.webhooks.reach import Policy, Refused, is_public, mailbox, parse
from models.errors import InvalidInput


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/", "//example.com", "https:example.com", "https://", "https:///path", "https://user@example.com/", "https://user:p@example.com/",
        "https://example.com/#part", "https://example.com./", "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://127.1/",
        "https://017700000001/", "https://1.2.3.256/", "https://ex ample.com/", "https://example.com/\r\nX: y", "https://exämple.com/", "https://127.0.0.1/",
        "https://example.com\\@evil.example/", "https://%3127.0.0.1/", "https://example.com:/", "https://example.com:0/", "https://example.com:99999/",
        "https://[fe80::1%25eth0]/", "https://[::1", "https://a..b/", "https://-a.example/", "javascript:alert(1)", "",
    ],
)  # fmt: skip
def test_urls_that_could_be_read_in_two_ways_or_lead_inside_are_refused(url: str) -> None:
    with pytest.raises(Refused):
        Policy().check(parse(url), ["93.184.215.14"] if "127.0.0.1/" not in url else ["127.0.0.1"])


def test_a_url_is_taken_apart() -> None:
    found = parse("HTTPS://Hooks.Example.com:8443/a/b?c=d%20e")
    assert (found.scheme, found.host, found.port, found.path, found.authority) == ("https", "hooks.example.com", 8443, "/a/b?c=d%20e", "hooks.example.com:8443")
    assert parse("https://[2606:4700:0::1]/").authority == "[2606:4700::1]"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "168.63.129.16", "100.64.0.1", "100.100.100.200", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "192.0.0.192", "192.88.99.1", "198.18.0.1", "203.0.113.1", "240.0.0.1", "::", "::1", "fe80::1", "fc00::1", "fec0::1", "ff02::1",
        "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:a9fe:a9fe::1", "2001::1", "::169.254.169.254", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_only_we_can_reach_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(Refused, match="not a public address"):
        Policy().check(parse("https://hooks.example.com/"), [address])


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_one_inner_address_among_public_ones_refuses_the_name() -> None:
    with pytest.raises(Refused, match=r"10\.0\.0\.5"):
        Policy().check(parse("https://hooks.example.com/"), ["93.184.215.14", "10.0.0.5"])


def test_allowed_networks_take_plain_http_on_any_port_and_others_do_not() -> None:
    policy = Policy.parse("10.0.0.0/8, 127.0.0.1/32", "")
    assert policy.check(parse("http://inner.example:8080/"), ["10.1.2.3"]) == ["10.1.2.3"]
    assert policy.check(parse("http://127.0.0.1:9/"), ["127.0.0.1"]) == ["127.0.0.1"]
    assert policy.check(parse("http://127.0.0.1:9/"), ["::ffff:127.0.0.1"]) == ["127.0.0.1"]
    for url, address, reason in (
        ("http://hooks.example.com/", "93.184.215.14", "use https"),
        ("https://hooks.example.com:8443/", "93.184.215.14", "port 8443"),
        ("http://127.0.0.2/", "127.0.0.2", "not a public address"),
    ):
        with pytest.raises(Refused, match=reason):
            policy.check(parse(url), [address])
    assert Policy.parse("", "8443").check(parse("https://hooks.example.com:8443/"), ["93.184.215.14"]) == ["93.184.215.14"]


@pytest.mark.parametrize("address", ["169.254.169.254", "168.63.129.16", "127.0.0.1", "::1"])
def test_a_wide_network_does_not_open_the_metadata_service(address: str) -> None:
    target = parse("http://inner.example/")
    with pytest.raises(Refused):
        Policy.parse("0.0.0.0/0,::/0,169.254.0.0/16", "").check(target, [address])
    assert Policy.parse(address, "").check(target, [address]) == [address]


def test_settings_that_are_none_are_said() -> None:
    with pytest.raises(InvalidInput, match="METERBRIDGE_WEBHOOK_ALLOW"):
        Policy.parse("10.0.0.0/33", "")
    with pytest.raises(InvalidInput, match="METERBRIDGE_WEBHOOK_PORTS"):
        Policy.parse("", "0")


def test_mail_addresses_carry_no_headers() -> None:
    assert mailbox("mailto:a@example.com,b@example.org") == ["a@example.com", "b@example.org"]
    for url in ("mailto:", "mailto:a", "mailto:a@b?cc=c@d", "mailto:a@b\r\nBcc:c@d", "https://a@b", "mailto:a@b%0d%0ac"):
        with pytest.raises(Refused):
            mailbox(url)
