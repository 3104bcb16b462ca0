"""Reading cluster files: YAML 1.2, places in the file, the 2017 format, and files that want to do harm."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.config.yaml_file import MAX_BYTES, parse, read, written
from dpwa.errors import ConfigError


def value_of(text):
    return parse(f"key: {text}", "c.yaml").values["key"]


def message_of(text):
    with pytest.raises(ConfigError) as caught:
        parse(text, "c.yaml")
    assert "\n" not in str(caught.value), "one clear line"
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-2.5e+1", -25.0),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("7", 7),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("2020-01-01", "2020-01-01"),
        ('"1"', "1"),
        ("'true'", "true"),
        ("!!str 1", "1"),
        ("9" * 5000, math.inf),
        ("[1, {a: 2}]", [1, {"a": 2}]),
    ],
)
def test_plain_values_are_read_by_yaml_1_2(text, value):
    found = value_of(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number():
    assert math.isnan(value_of(".nan"))


def test_an_alias_stands_for_its_value():
    assert parse("a: &x {b: 1}\nc: *x", "c.yaml").values == {"a": {"b": 1}, "c": {"b": 1}}


def test_the_byte_order_mark_of_some_editors_is_passed_over(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfrun: x\n")
    assert read(path).values == {"run": "x"}


def test_places_are_lines_and_columns_from_one():
    file = parse("run: x\nnodes:\n  - {name: a,\n     port: 1}\n", "c.yaml")
    assert file.locate(("nodes", 0, "port"), key=False) == (4, 12)
    assert file.locate(("nodes", 0, "port"), key=True) == (4, 6)
    assert file.locate(("nodes", 0, "missing"), key=False) == (3, 5), "the mapping in which it is missing"
    assert file.locate((), key=False) == (1, 1)


def test_places_are_written_as_a_person_would():
    assert written(("nodes", 1, "name")) == "nodes[1].name"
    assert written(()) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml: the file is empty"),
        ("# only a comment", "c.yaml: the file is empty"),
        ("17", "c.yaml:1:1: expected a mapping with the key nodes"),
        ("[]", "c.yaml:1:1: expected a mapping with the key nodes"),
        ("a: b: c", "c.yaml:1:5: not valid YAML"),
        ("a: 'x", "c.yaml:1:6: not valid YAML"),
        ("\ta: 1", "c.yaml:1:1: not valid YAML"),
        ("a: \0", "c.yaml: not valid YAML"),
        ("a: 1\n---\nb: 1", "c.yaml:2:1: expected one YAML document"),
        ("1: 2", "c.yaml:1:1: expected a word as the key, got 1"),
        ("? [1]\n: 2", "c.yaml:1:3: expected a word as the key"),
        ("a: 1\n*a : 2", "c.yaml:2:1: the alias *a stands for nothing"),
        ("a: *b", "c.yaml:1:4: the alias *b stands for nothing"),
        ("a: &a [*a]", "c.yaml:1:8: the alias *a stands for nothing"),
        ("a: !!python/object:os.system x", "c.yaml:1:4: expected plain values, got the tag"),
        ("a: !!map {}", "c.yaml:1:4: expected plain values, got the tag"),
    ],
)
def test_what_is_no_cluster_file_is_refused_in_one_line(text, message):
    assert message_of(text).startswith(message)


@pytest.mark.parametrize("text", ["[" * 500_000, "{a: " * 200_000, "- " * 100_000, "a: " + "[" * 33 + "]" * 33])
def test_deep_nesting_is_refused_without_exhausting_the_stack(text):
    assert "expected at most 32 levels of nesting" in message_of(text)


def test_nesting_through_aliases_is_refused_too():
    layers = "\n".join(f"l{i}: &l{i} {'[' * 10}*l{i - 1}{']' * 10}" for i in range(1, 9))
    assert "also through aliases" in message_of(f"l0: &l0 [1]\n{layers}")


def test_aliases_of_aliases_are_counted_in_full():
    layers = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10))
    began = time.perf_counter()
    assert "counting aliases in full" in message_of(f"l0: &l0 [1]\n{layers}")
    assert time.perf_counter() - began < 1


def test_a_key_that_stands_twice_is_a_problem_that_names_both_lines():
    file = parse("a: 1\nb: {x: 1,\n  x: 2}\na: 3\n", "c.yaml")
    assert [(line, column) for line, column, _ in file.problems] == [(3, 3), (4, 1)]
    assert 'the key "x" stands here and in line 2' in file.problems[0][2]
    assert file.values == {"a": 1, "b": {"x": 1}}


@pytest.mark.parametrize("make", ["missing", "folder", "not text", "too large"])
def test_a_file_that_cannot_be_read_is_one_clear_line(make, tmp_path):
    path = tmp_path / "c.yaml"
    expected = {
        "missing": "cannot be read: No such file",
        "folder": "cannot be read: Is a directory",
        "not text": ":2: expected text in UTF-8, got the byte 0xff",
        "too large": f"expected a cluster file of at most {MAX_BYTES} bytes",
    }[make]
    if make == "folder":
        path.mkdir()
    elif make == "not text":
        path.write_bytes(b"a: 1\n\xff\xfe")
    elif make == "too large":
        path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_list_of_2017_becomes_a_mapping():
    file = parse("---\n- nodes:\n  - {name: a, port: 1}\n- fetch_probability: 1\n- clock: 0\n- loss: 0\n", "c.yaml")
    assert file.values == {"nodes": [{"name": "a", "port": 1}], "pull_probability": 1, "clock": {}, "loss": {}}
    assert file.problems == ()
    assert file.locate(("pull_probability",), key=True) == (4, 3)
    assert file.spell(("pull_probability",)) == "fetch_probability", "messages use the file's own word"


def test_the_2017_word_is_read_in_a_mapping_too():
    assert parse("fetch_probability: 0.5", "c.yaml").values == {"pull_probability": 0.5}


def test_the_2017_word_and_todays_together_are_a_problem():
    file = parse("pull_probability: 1\nfetch_probability: 0.5", "c.yaml")
    ((line, column, text),) = file.problems
    assert (line, column) == (2, 1)
    assert text == '"fetch_probability" means "pull_probability", which stands in line 1; remove one of the two'


def test_items_of_the_2017_list_have_one_key_each_and_none_twice():
    file = parse("- run: a\n- {x: 1, y: 2}\n- 17\n- run: b\n", "c.yaml")
    assert [line for line, _, _ in file.problems] == [2, 3, 4]
    assert 'the key "run" stands here and in line 1' in file.problems[2][2]


@given(st.text(alphabet=" \n\t-:{}[],&*!|>'\"%@`#?~<ab01.e\0é", max_size=60))
def test_no_text_does_more_than_a_config_error(text):
    try:
        outcome = parse(text, "c.yaml").values
    except ConfigError as error:
        outcome = str(error)
    assert isinstance(outcome, dict) or outcome.startswith("c.yaml")
