"""The list of machines that ssh starts nodes on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.errors import ConfigError
from dpwa.launch.hosts_file import Host, parse_hosts, read_hosts


def test_a_line_names_a_host_and_what_is_not_the_default():
    text = """
    # two machines
    ada@10.0.0.1:2222 slots=2 dir="~/my digits" python=.venv/bin/python address=10.1.0.1  # the first
    gpu-box
    [fe80::1]:22
    """
    assert parse_hosts(text) == [
        Host("ada@10.0.0.1", 2222, 2, "~/my digits", ".venv/bin/python", "10.1.0.1", line=3),
        Host("gpu-box", line=4),
        Host("fe80::1", 22, line=5),
    ]
    assert [str(host) for host in parse_hosts(text)] == ["ada@10.0.0.1:2222", "gpu-box", "fe80::1:22"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("-oProxyCommand=id", 'expected [user@]host[:port] at the beginning, got "-oProxyCommand=id"'),
        ("-v", 'expected [user@]host[:port] at the beginning, got "-v"'),
        ("a b@host", 'expected slots=..., dir=..., python=..., address=... behind the host, got "b@host"'),
        ("-u@host", "at the beginning"),
        ("slots=2", "at the beginning"),
        ("host:0", 'a port from 1 to 65535 behind the colon, got "0"'),
        ("host:", "a port from 1 to 65535"),
        ("host:ssh", 'got "ssh"'),
        ("host slots=0", "expected slots from 1 to 256, got 0"),
        ("host slots=two", "got two"),
        ("host slots=1 slots=2", "slots is set twice"),
        ("host dir=", "dir= has no value"),
        ("host gpus=2", 'got "gpus=2"'),
        ("host address=0.0.0.0", 'address "0.0.0.0": expected an address that peers can reach'),
        ('host dir="a', "no closing quotation; close the quotation"),
        ("host\nhost slots=2", "hosts:2: host stands in line 1 too; name it once, with slots=N"),
        ("", "hosts: names no host"),
        ("# nothing", "hosts: names no host"),
    ],
)
def test_a_mistake_is_named_with_its_line(line, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        parse_hosts(line)


def test_all_mistakes_are_named_at_once(tmp_path):
    path = tmp_path / "hosts.txt"
    path.write_text("a slots=x\n\nb\nc dri=y\n")
    with pytest.raises(ConfigError) as error:
        read_hosts(path)
    assert [problem.split(": ")[0] for problem in error.value.problems] == [f"{path}:1", f"{path}:4"]


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.txt: cannot be read \(No such file or directory\); expected a file"):
        read_hosts(tmp_path / "no.txt")
    (tmp_path / "image").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ConfigError, match="expected text in UTF-8 with one host on a line, got byte 0"):
        read_hosts(tmp_path / "image")


@given(st.text(max_size=200))
def test_whatever_stands_there_is_read_or_refused_and_never_an_option_of_ssh(text):
    try:
        found = parse_hosts(text)
    except ConfigError:
        return
    for host in found:
        assert not host.destination.startswith("-")
        assert not set(host.destination) & set(" \t'\"\\$;|&")
