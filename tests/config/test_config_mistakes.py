"""Mistakes that people make in cluster files: each is answered at its place, with what to write instead."""

import pytest
import yaml

from dpwa.config import yaml_file
from dpwa.config.cluster import ClusterConfig
from dpwa.config.describe import describe
from dpwa.config.yaml_mistakes import likely_mistake
from dpwa.errors import ConfigError

NODES = "nodes:\n  - {name: w1, port: 23200}\n  - {name: w2, port: 23201}\n"


def problems_of(text):
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.from_text(text, "c.yaml")
    return [problem.removeprefix("c.yaml:") for problem in caught.value.problems]


@pytest.fixture(params=["C", "Python"])
def parser(request, monkeypatch):
    """Both of PyYAML's parsers: they give up at different places."""
    if request.param == "Python":
        monkeypatch.setattr(yaml_file, "_LOADER", yaml.SafeLoader)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nodes:\n\t- name: w1\n\t  port: 23200\n", "2:1: not valid YAML: here is a tab; indent with spaces only"),
        ("nodes:\n  - name: w1\n\tport: 1\n", "3:1: not valid YAML: here is a tab; indent with spaces only"),
        ("nodes:\n  - name: w1\n  \tport: 1\n", "3:3: not valid YAML: here is a tab; indent with spaces only"),
    ],
)
def test_a_tab_is_called_a_tab(text, problem):
    assert problems_of(text) == [problem]


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("nodes\n  - name: w1\n    port: 23200\n", "1:1"),
        ("nodes\n  - {name: w1, port: 23200}\n", "1:1"),
        ("run: x\nnodes   # of two machines\n  - {name: w1, port: 23200}\n", "2:1"),
    ],
)
def test_a_key_without_its_colon_is_named_where_it_stands(text, place):
    assert problems_of(text) == [f'{place}: not valid YAML: expected a colon after "nodes"; write nodes:']


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "place", "pair"),
    [
        ("nodes:\n  - name: w1\n    port:23200\n  - name: w2\n    port: 23201\n", "3:9", "port: 23200"),
        ("nodes:\n  - name:w1\n    port: 23200\n", "2:9", "name: w1"),
        (f"timeout_ms:100\n{NODES}", "1:11", "timeout_ms: 100"),
    ],
)
def test_a_colon_without_a_space_is_found_where_it_stands(text, place, pair):
    assert problems_of(text) == [f"{place}: not valid YAML: expected a space after the colon; write {pair}"]


def test_a_colon_without_a_space_in_braces_is_found_with_all_other_mistakes():
    assert problems_of("seed: x\nnodes: [{name: w1, port:23200}]\n") == [
        '1:7: seed: expected a whole number from 0 to 4294967295, got "x"',
        "2:9: nodes[0].port: missing; expected a whole number from 1 to 65535",
        '2:20: nodes[0].port:23200: unknown key, write "port: 23200", with a space after the colon',
    ]


@pytest.mark.parametrize(
    "text", ["a: 'x\nb: 1\n", "a: [1, 2\nb: 1\n", "a: {b: 1]\n", "two words\na: b\n", "a:1\n" * 9 + "b: ]\n"]
)
def test_a_guess_that_mends_nothing_is_not_told(text):
    assert "look at indentation, quotes and brackets there" in problems_of(text)[0]


def test_only_a_few_guesses_are_tried():
    tried = []

    def parse(text):
        tried.append(text)
        raise yaml.MarkedYAMLError(problem_mark=yaml.Mark("", 0, 0, 0, None, None))

    error = yaml.MarkedYAMLError(problem_mark=yaml.Mark("", 0, 5, 0, None, None))
    assert likely_mistake("a:1\n" * 10, error, parse) is None
    assert len(tried) == 3


EXAMPLE = "; for example: - {name: w1, port: 21000}"


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ("nodes:\n  w1: {port: 1}\n", f"2:3: nodes: expected a list of 1 to 4096 entries, got a mapping{EXAMPLE}"),
        ("nodes: 4\n", f"1:8: nodes: expected a list of 1 to 4096 entries, got 4{EXAMPLE}"),
        ("nodes: [w1]\n", f'1:9: nodes[0]: expected a mapping (key: value), got "w1"{EXAMPLE}'),
        ("run: x\n", f"1:1: nodes: missing; expected a list of 1 to 4096 entries{EXAMPLE}"),
    ],
)
def test_nodes_of_another_form_are_answered_with_a_line_to_copy(nodes, problem):
    assert problems_of(nodes) == [problem]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("[2001:db8::7]", 'a host name or an IP address, got "[2001:db8::7]"; write it without brackets'),
        (
            "10.0.0.7:21000",
            'a host name or an IP address, got "10.0.0.7:21000"; write host: 10.0.0.7 and port: 21000',
        ),
        (
            "fe80::1%eth0",
            "an address that means the same on every machine; one with a zone, or from fe80::/10, does not, got "
            '"fe80::1%eth0"',
        ),
        ("::", 'an address that peers can reach, such as this node\'s own, got "::"'),
    ],
)
def test_an_address_that_cannot_be_the_host_of_a_node_is_told_how_to_write_it(host, expected):
    assert problems_of(f'nodes: [{{name: w1, host: "{host}", port: 1}}]\n') == [
        f"1:26: nodes[0].host: expected {expected}"
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("factor: 0.5", "1:1: factor: unknown key, did you mean constant: {value: 0.5}?"),
        ("constant: {factor: 0.5}", '1:12: constant.factor: unknown key, did you mean "value"?'),
        ("alpha: 0.5", "1:1: alpha: unknown key, did you mean elastic: {alpha: 0.5}?"),
        ("half_life:", "1:1: half_life: unknown key, did you mean staleness: {half_life: …}?"),
        ("TIMEOUT_MS: 100", '1:1: TIMEOUT_MS: unknown key, did you mean "timeout_ms"?'),
        ("timeout-ms: 100", '1:1: timeout-ms: unknown key, did you mean "timeout_ms"?'),
        ("Method: pull", '1:1: Method: unknown key, did you mean "method"?'),
        ("probability: 0.5", '1:1: probability: unknown key, did you mean "pull_probability"?'),
        ("own_method: {a: 1}", '1:1: own_method: unknown key, did you mean "custom_method"?'),
    ],
)
def test_a_key_by_another_name_is_answered_with_ours(line, problem):
    assert problems_of(f"{line}\n{NODES}") == [problem]


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("codec: float16", "fp16"),
        ("codec: FP16", "fp16"),
        ("codec: bfloat16", "bf16"),
        ("topology: fully_connected", "complete"),
        ("topology: {graph: fully-connected}", "complete"),
        ("topology: cycle", "ring"),
    ],
)
def test_a_value_by_another_name_is_answered_with_ours(line, meant):
    [problem] = problems_of(f"{line}\n{NODES}")
    assert problem.endswith(f'; did you mean "{meant}"?')


def test_every_other_name_is_that_of_something():
    """A word for a key or value that is not there would send people on to the next error."""
    schema = ClusterConfig.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for key, one in section.get("properties", {}).items():
            assert set(one.get("x-other-values", {}).values()) <= set(one.get("enum", ())), key
            assert not set(one.get("x-other-names", ())) & set(section["properties"]), key


def test_merge_keys_are_called_unsupported_and_what_they_bring_is_not_called_missing():
    merge = "merge keys (<<) are not supported; write the keys here, or use an alias (*name) for a whole value"
    assert problems_of("nodes:\n  - &a {name: w1, port: 23200}\n  - {<<: *a, name: w2, port: 23201}\n") == [
        f"3:6: {merge}"
    ]
    assert problems_of("nodes:\n  - &a {name: w1, port: 23200}\n  - {<<: *a, name: w2, pord: 1}\n") == [
        "2:25: nodes[1].port: nodes[0] has port 23200 of this host too; give each its own",
        f"3:6: {merge}",
        '3:24: nodes[1].pord: unknown key, did you mean "port"?',
    ]
    assert problems_of("- nodes: [{name: w1, port: 23200}]\n- <<: {seed: 1}\n") == [f"2:3: {merge}"]
    assert problems_of("nodes: [{name: w1, port: 23200}]\n<<: {fetch_probability: 0.5}\n") == [f"2:1: {merge}"]


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        ("custom_method: {a: 1}", "custom_method has no effect: method pull is not a custom one"),
        ("custom_rule: {a: 1}", "custom_rule has no effect: interpolation constant is not a custom one"),
        ("elastic: {alpha: 0.3}", "elastic has no effect: it is for method elastic, and the method is pull"),
        (
            "staleness: {value: 0.3}",
            "staleness has no effect: it is for interpolation staleness, and the interpolation is constant",
        ),
        (
            "method: gosgd\npull_probability: 0.1\nfactor_max: 0.5",
            "factor_max has no effect: it is about the factor of a pull, which method gosgd does not use",
        ),
        (
            "method: adpsgd\ninterpolation: loss",
            "interpolation has no effect: it is about the factor of a pull, which method adpsgd does not use",
        ),
        (
            "method: dpsgd\npull_probability: 0",
            "pull_probability has no effect: method dpsgd itself says when it exchanges",
        ),
        (
            "method: sparta\npull_fraction: 0.25\nsparta: {fraction: 0.01}",
            "pull_fraction has no effect: an exchange of method sparta brings 0.01 anyway",
        ),
        ("outer: {momentum: 0.5}", "outer has no effect without `every`, the steps between two outer steps"),
        ("checkpoint: {keep: 3}", "checkpoint has no effect without `every_s`, the seconds between two checkpoints"),
    ],
)
def test_check_warns_of_keys_without_effect(lines, warning):
    text = describe(ClusterConfig.from_text(f"{lines}\n{NODES}"), ["w1"])
    assert [line for line in text.splitlines() if line.startswith("warning")] == [f"warning: {warning}"]


@pytest.mark.parametrize(
    "lines",
    [
        "elastic: {alpha: 0.25}",  # the default, as in a file with all settings
        "method: elastic\nelastic: {alpha: 0.3}",
        "interpolation: loss\nfactor_max: 0.5\nloss_smoothing: 0.5",
        "method: sparta\nsparta: {base: pull}\nfactor_max: 0.5",
        "method: sparta\nsparta: {fraction: 0.5}\npull_fraction: 0.25",
        "pull_fraction: 0.25",
        "outer: {every: 10, momentum: 0.5}",
        "checkpoint: {every_s: 10, keep: 3}",
        'method: "my_method:Mine"\ncustom_method: {a: 1}\nfactor_max: 0.5',
    ],
)
def test_check_does_not_warn_of_keys_that_have_an_effect(lines):
    assert "no effect" not in describe(ClusterConfig.from_text(f"{lines}\n{NODES}"), ["w1"])


@pytest.mark.parametrize(("fraction", "share"), [(0.01, 0.01), (0.5, 0.25)])
def test_check_says_how_much_an_exchange_of_sparta_brings(fraction, share):
    lines = f"method: sparta\npull_fraction: 0.25\nsparta: {{fraction: {fraction}}}"
    assert f"an exchange pulls {share:g} of them" in describe(ClusterConfig.from_text(f"{lines}\n{NODES}"), ["w1"])


def test_an_empty_folder_of_keys_is_refused_and_not_taken_for_the_one_of_the_file(tmp_path):
    (tmp_path / "cluster.yaml").write_text(f'keys: ""\n{NODES}')
    with pytest.raises(ConfigError, match=r":1:7: keys: expected"):
        ClusterConfig.load(tmp_path / "cluster.yaml")


def test_check_warns_of_gosgd_at_its_default_probability():
    text = describe(ClusterConfig.from_text(f"method: gosgd\n{NODES}"), ["w1"])
    assert "warning: method gosgd loses part of the training at pull_probability 1; set it to 0.2 or less" in text


@pytest.mark.parametrize("mark", ["\u0530", "\u202e", "\u200b", "\xa0", "\u2028", "\n", "\x1b", "\ud800"])
@pytest.mark.parametrize("line", ['"{}": 1', 'method: "{}"', 'run: "{}"', 'interpolation: {{"{}": 1}}'])
def test_what_a_terminal_does_not_show_as_it_is_stands_in_a_message_as_an_escape(line, mark):
    """Otherwise a file could turn its line round, hide a part of it, or end it and begin another."""
    for problem in problems_of(f"{line.format(f'a{mark}b')}\n{NODES}"):
        assert problem.isprintable()
        assert mark not in problem
