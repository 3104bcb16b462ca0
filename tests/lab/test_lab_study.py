"""Study files: rows, seeds, grid, selection, and all mistakes at once with their places."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.errors import ConfigError
from dpwa.lab.study.kinds import STRATEGIES
from dpwa.lab.study.layers import Layers
from dpwa.lab.study.study import Study, trial_folder_name
from dpwa.lab.study.study_rows import slug
from dpwa.lab.study.trial import Trial

BASE = "study: try\ndata: digits\nmodel: mlp\nnodes: 2\n"


def study_of(text: str) -> Study:
    return Study.from_text(BASE + text)


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        study_of(text)
    return list(caught.value.problems)


def labels(study: Study) -> list[str]:
    return [row.label for row in study.rows]


def test_a_word_is_a_row_with_the_settings_of_the_study() -> None:
    study = study_of("n_epochs: 3\nstrategies: [single, pull]\n")
    assert labels(study) == ["single", "pull"]
    assert [row.settings.n_epochs for row in study.rows] == [3, 3]
    assert study.seeds == (0,)
    assert study.title == "try"


def test_mirrored_trains_with_cross_entropy_only() -> None:
    (problem,) = problems_of("loss: mse\nstrategies: [single, tf_mirrored]\n")
    assert "tf_mirrored knows only cross_entropy, got mse" in problem
    study_of("loss: mse\nstrategies: [single, {strategy: tf_mirrored, loss: cross_entropy}]\n")


def test_the_recipe_of_the_literature_holds_for_all_rows_but_those_that_say_otherwise() -> None:
    study = study_of("literature_recipe: other\nstrategies: [single, {strategy: pull, literature_recipe: same}]\n")
    assert [row.is_same_recipe for row in study.rows] == [False, True]
    assert study_of("strategies: [single]\n").rows[0].is_same_recipe


def test_settings_of_a_row_cover_those_of_the_study() -> None:
    study = study_of("n_epochs: 3\nstrategies: [{strategy: single, n_epochs: 5, name: longer}, single]\n")
    assert [(row.label, row.settings.n_epochs) for row in study.rows] == [("longer", 5), ("single", 3)]


def test_keys_of_the_cluster_are_joined_and_those_of_the_row_win() -> None:
    study = study_of(
        "cluster: {timeout_ms: 5000, pull_probability: 0.5}\n"
        "strategies: [{strategy: pull, cluster: {pull_probability: 0.1, topology: ring}}]\n"
    )
    assert study.rows[0].settings.cluster == {"timeout_ms": 5000, "pull_probability": 0.1, "topology": "ring"}


def test_a_grid_makes_a_row_for_each_combination() -> None:
    study = study_of(
        "strategies: [gosgd, pull]\ngrid:\n  cluster.pull_probability: [1.0, 0.5]\n  learning_rate: [0.1, 0.01]\n"
    )
    assert len(study.rows) == 8
    assert labels(study)[0] == "gosgd, pull_probability=1, learning_rate=0.1"
    assert study.rows[3].settings.cluster == {"pull_probability": 0.5}
    assert study.rows[3].settings.learning_rate == 0.01


def test_a_key_of_the_grid_that_a_strategy_does_not_use_does_not_multiply_its_rows() -> None:
    study = study_of(
        "strategies: [single, dpsgd, fedprox, pull]\ngrid: {cluster.pull_probability: [1.0, 0.5], mu: [0.1, 1.0]}\n"
    )
    assert labels(study) == [
        "single",
        "dpsgd",
        "fedprox, mu=0.1",
        "fedprox, mu=1",
        "pull, pull_probability=1",
        "pull, pull_probability=0.5",
    ]


@pytest.mark.parametrize("key", ["partition.alpha", "partition.classes_per_node", "decay_factor"])
def test_a_grid_over_what_no_row_uses_is_refused(key: str) -> None:
    """Its rows would differ in their names only."""
    values = "[2, 3]" if key.endswith("node") else "[0.1, 0.5]"
    found = problems_of(f"strategies: [pull]\ngrid: {{{key}: {values}}}\n")
    assert len(found) == 2
    assert all(f": grid.{key}[" in line and "remove one of the two" in line for line in found)


def test_a_decay_for_all_rows_may_be_used_by_some_of_them_alone() -> None:
    study = study_of("decay_factor: 0.5\nstrategies: [pull, {strategy: pull, name: steps, schedule: steps}]\n")
    assert [row.settings.decay_factor for row in study.rows] == [0.5, 0.5]


def test_one_process_with_wrong_labels_has_those_of_the_node_that_its_rivals_have() -> None:
    study = study_of("strategies: [single, pull]\npartition: classes\nwrong_labels: {node: 2, share: 0.5}\n")
    assert [row.settings.partition.kind for row in study.rows] == ["classes", "classes"]


def test_a_row_that_sets_a_key_of_the_grid_keeps_its_own_value() -> None:
    study = study_of(
        "strategies: [pull, {name: seldom, strategy: pull, cluster: {pull_probability: 0.05}}]\n"
        "grid: {cluster.pull_probability: [1.0, 0.5]}\n"
    )
    assert labels(study)[-1] == "seldom"
    assert len(study.rows) == 3
    assert study.rows[-1].settings.cluster == {"pull_probability": 0.05}


def test_what_a_strategy_does_not_use_is_left_out_of_its_settings() -> None:
    study = study_of(
        "cluster: {pull_probability: 0.5}\nmu: 3.0\npartition: classes\nslow: {node: 2, factor: 4}\n"
        "strategies: [single, param_avg]\n"
    )
    single, averaged = (row.settings for row in study.rows)
    assert (single.cluster, single.mu, single.partition.kind, single.slow) == ({}, 1.0, "iid", None)
    assert (averaged.cluster, averaged.mu, averaged.partition.kind) == ({}, 1.0, "classes")
    assert averaged.slow is not None


def test_a_grid_over_a_section_keeps_the_rest_of_it() -> None:
    study = study_of("partition: dirichlet\nstrategies: [pull]\ngrid: {partition.alpha: [0.1, 100]}\n")
    assert [row.settings.partition.alpha for row in study.rows] == [0.1, 100.0]
    assert {row.settings.partition.kind for row in study.rows} == {"dirichlet"}


def test_mappings_and_null_in_a_grid_have_a_readable_label() -> None:
    study = study_of("strategies: [pull]\ngrid: {slow: [null, {node: 1, factor: 4}]}\n")
    assert labels(study) == ["pull, slow=none", "pull, slow=node 1 factor 4"]


def test_the_literature_stands_beside_its_row() -> None:
    study = study_of(
        "strategies: [{strategy: gosgd, literature: 80}, single]\n"
        "grid: {cluster.pull_probability: [1.0, 0.5]}\n"
        'literature: {"gosgd, pull_probability=0.5": 87.3, single: 90}\nliterature_unit: s\ntarget_accuracy: 90\n'
    )
    assert [row.literature for row in study.rows] == [80.0, 87.3, 90.0]
    assert (study.literature_unit, study.target_accuracy) == ("s", 90.0)


def test_seeds_are_a_number_or_a_list() -> None:
    assert study_of("strategies: [single]\nseeds: 3\n").seeds == (0, 1, 2)
    assert study_of("strategies: [single]\nseeds: [7, 5]\n").seeds == (7, 5)


def test_trials_are_rows_times_seeds_with_folders_of_their_own() -> None:
    study = study_of("strategies: [single, pull]\nseeds: 2\n")
    trials = study.trials()
    assert [(trial.row, trial.seed) for trial in trials] == [("single", 0), ("single", 1), ("pull", 0), ("pull", 1)]
    assert len({trial_folder_name(trial) for trial in trials}) == 4
    assert [trial.seed for trial in study.trials(seeds=3)] == [0, 1, 2, 0, 1, 2]


def test_a_trial_survives_its_file() -> None:
    for trial in study_of(
        "strategies: [{strategy: pull, cluster: {topology: ring}}, w_param_avg]\nlambda: 2\n"
    ).trials():
        assert Trial.from_json(json.loads(json.dumps(trial.to_json()))) == trial


def test_every_strategy_can_be_a_row() -> None:
    assert labels(study_of(f"strategies: [{', '.join(STRATEGIES)}]\n")) == list(STRATEGIES)


@pytest.mark.parametrize(
    ("only", "count"),
    [
        (["method=gosgd"], 6),
        (["strategy=gosgd", "seed=1"], 2),
        (["seed=0", "seed=2"], 8),
        (["cluster.pull_probability=0.5"], 3),
        (["pull_probability=1"], 3),
        (["row=single"], 3),
        (["row=gosgd, pull_probability=1"], 3),
        (["partition=iid"], 12),
        (["partition.kind=iid", "eval_acc=true"], 12),
        (["mu=1.0", "slow=null"], 12),
    ],
)
def test_only_picks_trials(only: list[str], count: int) -> None:
    study = study_of("strategies: [single, gosgd, ddp]\nseeds: 3\ngrid: {cluster.pull_probability: [1.0, 0.5]}\n")
    assert len(study.trials(only)) == count


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["methd=pull"], 'unknown key, did you mean "method"?'),
        (["method=gosgd"], "no trial has this value, expected one of: single; pull"),
        (["pull"], "expected KEY=VALUE"),
        (["method=single", "seed=5"], "expected one of: 0"),
        (["row=single", "method=pull"], "no trial meets all of these"),
    ],
)
def test_only_tells_what_there_is(only: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        study_of("strategies: [single, pull]\n").trials(only)
    assert message in str(caught.value)


@pytest.mark.parametrize("entry", ["cluster.pull_probability: 0.5", "partition.alpha: 0.5"])
def test_a_dotted_key_of_the_grid_in_a_row_is_answered_with_how_it_is_written_there(entry) -> None:
    section, _, key = entry.partition(":")[0].partition(".")
    meant = f"unknown key, did you mean {section}: {{{key}: 0.5}}?"
    assert problems_of(f"strategies: [{{strategy: pull, {entry}}}]\n") == [
        f"study.yaml:5:31: strategies[0].{section}.{key}: {meant}"
    ]
    assert problems_of(f"{entry}\nstrategies: [pull]\n") == [f"study.yaml:5:1: {section}.{key}: {meant}"]


def test_keys_about_the_factor_multiply_only_the_rows_of_methods_that_use_it() -> None:
    study = study_of("strategies: [pull, gosgd]\ngrid: {cluster.loss_smoothing: [0.0, 0.5]}\n")
    assert labels(study) == ["pull, loss_smoothing=0", "pull, loss_smoothing=0.5", "gosgd"]


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file() -> None:
    found = problems_of(
        """nodez: 3
batch_size: "12"
slow: {node: 9, faktor: 2}
strategies:
  - singel
  - strategy: pull
    cluster: {pull_probabilty: 0.5, nodes: 3}
  - {strategy: gosgd, mu: 1.0}
  - {strategy: ddp, partition: classes}
grid:
  cluster.constant.value: [1.0, 5]
  lamda: [1]
  partition.alpha: [-1]
seeds: 0
literature: {dpd: 3}
target_accuracy: 0
"""
    )
    expected = [
        ('5:1: nodez: unknown key, did you mean "nodes"?'),
        ("6:13: batch_size: expected a whole number from 1 to 100000"),
        ("7:7: slow.factor: missing; expected a number above 1"),
        ("7:14: slow.node: expected one of the 2 nodes, got 9"),
        ('7:17: slow.faktor: unknown key, did you mean "factor"?'),
        ("9:5: strategies[0].strategy: expected one of single, pull"),
        ('11:15: strategies[1].cluster.pull_probabilty: unknown key, did you mean "pull_probability"?'),
        ("11:37: strategies[1].cluster.nodes: the lab itself writes"),
        ("12:23: strategies[2].mu: mu is for fedprox; gosgd does not use it"),
        ("13:32: strategies[3].partition: ddp splits each batch"),
        ("15:33: grid.cluster.constant.value[1]: expected a number from 0 to 1, got 5"),
        ('16:3: grid.lamda: unknown setting, did you mean "lambda"?'),
        ("17:21: grid.partition.alpha[0]: expected a number above 0"),
        ("18:8: seeds: expected a number of seeds"),
        ('19:14: literature.dpd: there is no such row, did you mean "ddp"?'),
        ("20:18: target_accuracy: expected"),
    ]
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(f"study.yaml:{start}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strategies: [single, single]", "another row has the same label"),
        ("strategies: [{strategy: single, name: a b}, {strategy: pull, name: a-b}]", "too similar"),
        ("strategies: [pull]\ngrid: {n_epochs: [2, 2]}", "is here twice"),
        ("strategies: []", "expected a list of 1 to 200 entries, got a list of 0"),
        ("strategies: [pull]\ngrid: {n_epochs: []}", "grid.n_epochs: expected a list"),
        ("strategies: [pull]\ngrid: {n_epochs: 3}", "grid.n_epochs: expected a list"),
        ("strategies: [pull]\ngrid: {strategy: [pull]}", "unknown setting"),
        ("strategies: [ddp]\npartition: classes", "write partition: iid for this row"),
        ("strategies: [parallel_sgd]\nbatch_size: 1", "at least one sample for each of 2 nodes, got 1"),
        ("strategies: [{strategy: single, partition: iid}]", "single process that sees all data"),
        ("strategies: [pull]\nkill: {node: 3, at: 0.5}", "expected one of the 2 nodes, got 3"),
        ("strategies: [pull]\nwrong_labels: {node: 3, share: 0.1}", "expected one of the 2 nodes, got 3"),
        ("strategies: [pull]\nslow: 3", "slow: expected a mapping"),
        ("strategies: [pull]\npartition: clases", 'did you mean "classes"?'),
        ("strategies: [{strategy: pull, cluster: {topology: rign}}]", 'did you mean "ring"?'),
        ("strategies: [{strategy: gosgd, cluster: {blend: absolute}}]", "absolute is a way of the method pull"),
        ("strategies: [pull]\nlearning_rate: .nan", "learning_rate: expected a number above 0"),
        ("strategies: [pull]\nseeds: [1, 1]", "list of different whole numbers"),
        ("strategies: [pull]\nseeds: true", "expected a number of seeds"),
        ("strategies: [pull]\nliterature: {pull: many}", "literature.pull: expected a number"),
        ("strategies: [{strategy: 3}]", "strategies[0].strategy: expected text"),
        ("strategies: [[pull]]", "strategies[0]: expected a mapping"),
        (
            "strategies: [pull]\nsame_updates: [[pull]]",
            "same_updates[0]: expected a list of at least 2 entries, got a list of 1",
        ),
        (f"strategies: [pull]\ntakes: {'x' * 41}", "takes: expected text of at most 40 characters"),
        (
            "strategies: [pull]\npartition: {alpha: 0.3}",
            "alpha is for partition dirichlet and quantity, and here it is iid",
        ),
        ("strategies: [pull]\npartition: {kind: dirichlet, equal: true}", "equal is for partition classes"),
        (
            "strategies: [{strategy: pull, decay_factor: 0.5}]",
            "for schedule: steps, and here it is constant",
        ),
        ("strategies: pull", "strategies: expected a list"),
        ("title: x", "strategies: missing"),
    ],
)
def test_a_mistake_is_reported_with_what_was_expected(text: str, message: str) -> None:
    found = problems_of(text + "\n")
    assert len(found) == 1
    assert message in found[0]


def test_a_custom_method_is_a_strategy_like_dpwas_own() -> None:
    study = study_of(
        "strategies:\n"
        "  - strategy: best_peer:BestPeer\n"
        "    cluster: {interpolation: loss, custom_method: {explore: 0.1}}\n"
        "grid: {cluster.pull_probability: [1, 0.5], cluster.sgp.debias: [true, false], mu: [1, 2]}\n"
    )
    assert labels(study) == [f"best_peer:BestPeer, pull_probability={share}" for share in ("1", "0.5")]
    kind = study.trials()[0].kind
    assert kind.is_method
    assert kind.name == "best_peer:BestPeer"


def test_the_module_of_a_custom_method_is_looked_for_before_anything_runs(tmp_path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("study: s\nstrategies: ['no_such_module_here:Method']\n")
    assert labels(Study.load(path)) == ["no_such_module_here:Method"]
    with pytest.raises(ConfigError, match=r"study.yaml:2:14: .*the module no_such_module_here cannot be imported"):
        Study.load(path, for_running=True)


def test_too_many_rows_are_refused_before_they_are_made() -> None:
    values = ", ".join(map(str, range(1, 1001)))
    found = problems_of(f"strategies: [pull]\ngrid: {{n_epochs: [{values}], batch_size: [{values}]}}\n")
    assert len(found) == 1
    assert "at most 500 rows" in found[0]


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("- study: x\n- strategies: [single]\n")
    with pytest.raises(ConfigError, match=r"expected a mapping .* at the top of a study file"):
        Study.load(path)
    with pytest.raises(ConfigError, match="the study file cannot be read"):
        Study.load(tmp_path / "none.yaml")
    path.write_text("")
    with pytest.raises(ConfigError, match="the file is empty"):
        Study.load(path)


def test_a_matrix_is_looked_for_beside_the_study_and_only_to_run_it(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(BASE + "strategies: [{strategy: dpsgd, cluster: {topology: {graph: matrix, matrix: m.csv}}}]\n")
    assert labels(Study.load(path)) == ["dpsgd"]
    with pytest.raises(ConfigError, match=r"study.yaml:5:.*strategies\[0\].cluster.topology.matrix: .*m.csv"):
        Study.load(path, for_running=True)
    (tmp_path / "m.csv").write_text("0.5,0.5\n0.5,0.5\n")
    assert labels(Study.load(path, for_running=True)) == ["dpsgd"]


@given(st.text(max_size=200))
def test_any_label_makes_the_name_of_one_folder(label: str) -> None:
    name = slug(label)
    assert 1 <= len(name) <= 120
    assert name.isascii()
    assert not set(name) & set("/\\ \0")
    assert not name.startswith((".", "-"))


@given(
    st.lists(st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), st.integers()), min_size=1, max_size=8)
)
def test_what_was_set_last_holds_and_is_found_where_it_was_written(puts: list[tuple[list[str], int]]) -> None:
    layers = Layers()
    for number, (path, value) in enumerate(puts):
        layers.put(tuple(path), value, ("put", number))
    path, value = puts[-1]
    here: object = layers.values
    for key in path:
        assert isinstance(here, dict)
        here = here[key]
    assert here == value
    assert layers.origin(tuple(path), ()) == ("put", len(puts) - 1)
    assert layers.origin((*path, "inside"), ()) == ("put", len(puts) - 1, "inside")
    assert layers.origin(("never",), ("here",)) == ("here",)


KEYS = ("strategy", "strategies", "cluster", "grid", "mu", "slow", "node", "partition", "cluster.topology", "name", "x")
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 200)
    | st.floats(allow_nan=False)
    | st.sampled_from(["pull", "ddp", "iid"]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inside, max_size=4),
    max_leaves=12,
)


@pytest.mark.seconds
@given(st.dictionaries(st.sampled_from(KEYS), JSON_VALUES, max_size=6))
def test_any_content_is_a_study_or_a_list_of_problems(values: dict[str, object]) -> None:
    text = json.dumps({"study": "any", **values})
    try:
        study = Study.from_text(text)
    except ConfigError as error:
        problems = error.problems
    else:
        problems = ("study.yaml:",) if len(study.trials()) == len(study.rows) * len(study.seeds) else ("lost a trial",)
    assert problems
    assert [problem for problem in problems if not problem.startswith("study.yaml:")] == []


def settings_of(text: str) -> list[tuple[str, dict[str, object], float, float, float]]:
    """Of each row: its optimizer with options, learning rate, momentum and weight decay."""
    rows = [row.settings for row in study_of(text).rows]
    return [
        (one.optimizer.kind, one.optimizer.options, one.learning_rate, one.momentum, one.weight_decay) for one in rows
    ]


def test_without_an_optimizer_it_is_sgd_with_the_keys_that_it_always_had() -> None:
    assert settings_of("strategies: [single]\nlearning_rate: 0.1\nweight_decay: 0.01\n") == [
        ("sgd", {}, 0.1, 0.9, 0.01)
    ]


def test_a_rate_of_an_optimizer_is_the_learning_rate_of_the_row_wherever_it_is_written() -> None:
    adamw = "{adamw: {lr: 0.003, betas: [0.9, 0.95], weight_decay: 0.1}}"
    made = ("adamw", {"betas": [0.9, 0.95]}, 0.003, 0.0, 0.1)
    assert settings_of(f"strategies: [single]\noptimizer: {adamw}\n") == [made]
    # What stands at the top for the rows with sgd is nothing for a row with an optimizer of its own.
    text = f"learning_rate: 0.1\nmomentum: 0.5\nstrategies: [single, {{strategy: pull, optimizer: {adamw}}}]\n"
    assert settings_of(text) == [("sgd", {}, 0.1, 0.5, 0.0), made]


def test_an_optimizer_that_is_only_a_word_has_torchs_rate() -> None:
    assert settings_of("strategies: [single]\noptimizer: adam\n") == [("adam", {}, 0.001, 0.0, 0.0)]
    assert settings_of("strategies: [single]\noptimizer: adam\nlearning_rate: 0.01\n") == [("adam", {}, 0.01, 0.0, 0.0)]


def test_what_is_written_closer_to_the_row_wins() -> None:
    text = "optimizer: {adam: {lr: 0.1}}\nstrategies: [single, {strategy: pull, learning_rate: 0.2}]\n"
    assert [rate for _, _, rate, _, _ in settings_of(text)] == [0.1, 0.2]
    text = "strategies: [single, {strategy: pull, optimizer: {adam: {lr: 0.3}}}]\ngrid: {learning_rate: [0.1, 0.2]}\n"
    assert [rate for _, _, rate, _, _ in settings_of(text)] == [0.1, 0.2, 0.3]


def test_optimizers_can_be_compared_in_a_grid() -> None:
    study = study_of("strategies: [single]\ngrid: {optimizer: [sgd, {adamw: {lr: 0.01}}]}\n")
    assert labels(study) == ["single, optimizer=sgd", "single, optimizer=adamw lr 0.01"]
    assert [row.settings.learning_rate for row in study.rows] == [0.05, 0.01]
    assert len(study.trials(["optimizer=adamw"])) == 1


def test_a_trial_with_an_optimizer_comes_back_from_its_json_as_it_was() -> None:
    (trial,) = study_of("strategies: [single]\noptimizer: {muon: {lr: 0.02, momentum: 0.8}}\nclip_norm: 1\n").trials()
    assert Trial.from_json(json.loads(json.dumps(trial.to_json()))) == trial
    assert trial.settings.optimizer.options == {"momentum": 0.8}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "optimizer: adamm\n",
            'optimizer.kind: expected one of sgd, adam, adamw, muon, or module:function, got "adamm"',
        ),
        ("optimizer: {adam: {lrr: 1}}\n", 'optimizer.adam.lrr: unknown option, did you mean "lr"?'),
        ("optimizer: {adam: {lr: 1}, sgd: {}}\n", "optimizer: expected one optimizer with its options, such as adamw:"),
        (
            "optimizer: {adam: {lr: 1}}\nlearning_rate: 0.1\n",
            "optimizer.adam.lr: learning_rate is given, too; remove one",
        ),
        ("optimizer: adam\nmomentum: 0.5\n", "momentum: it is that of sgd, and the optimizer is adam; remove it"),
        ("optimizer: {adam: {lr: -1}}\n", "optimizer.adam.lr: expected a number above 0 and up to 100, got -1"),
        (
            "schedule: cosin\n",
            'schedule: expected one of constant, cosine, linear, steps, or module:function, got "cosin"',
        ),
        ("decay_at: [0.5, 2]\n", "decay_at[1]: expected a number above 0"),
        ("clip_norm: 0\n", "clip_norm: expected a number above 0"),
    ],
)
def test_mistakes_in_a_recipe_are_reported_with_what_is_expected(text, problem) -> None:
    found = problems_of(f"strategies: [single]\n{text}")
    assert any(problem in line for line in found), found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "model: gn_lenet\n",
            "model: tf_mirrored knows only mcmahan_cnn or light_cnn or mlp, got gn_lenet; leave the row",
        ),
        ("model: mlp\noptimizer: adam\n", "optimizer: tf_mirrored knows only sgd, got adam; leave the row out"),
        (
            "model: mlp\noptimizer: {sgd: {nesterov: true}}\n",
            "optimizer: tf_mirrored knows only sgd, got sgd with nesterov",
        ),
        ("model: mlp\nschedule: linear\n", "schedule: tf_mirrored knows only constant or cosine, got linear; leave"),
        ("model: mlp\nclip_norm: 1.0\n", "clip_norm: tf_mirrored knows only null, got 1.0; leave the row out"),
        ("model: mlp\nprecision: bfloat16\n", "precision: tf_mirrored knows only float32, got bfloat16; leave the row"),
        ("model: mlp\nwarmup_steps: 5\n", "warmup_steps: tf_mirrored knows only 0, got 5; leave the row out"),
    ],
)
def test_tf_mirrored_refuses_what_has_no_twin_in_tensorflow(text, problem) -> None:
    with pytest.raises(ConfigError) as caught:
        Study.from_text(f"study: try\ndata: digits\nstrategies: [single, tf_mirrored]\n{text}")
    (line,) = caught.value.problems
    assert problem in line


@pytest.mark.parametrize(("data", "model"), [("text", "mlp"), ("digits", "char_transformer")])
def test_a_network_of_the_lab_that_does_not_fit_a_data_set_of_the_lab_is_refused(data, model) -> None:
    with pytest.raises(ConfigError, match=rf"model: expected .* for data: {data}, got {model}"):
        Study.from_text(f"study: try\ndata: {data}\nmodel: {model}\nstrategies: [single]\n")


def test_a_users_own_code_is_found_beside_the_study_and_mistakes_in_its_names_have_a_place(tmp_path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "beside_the_study.py").write_text("def data(folder): ...\ndef model(shape, classes): ...\n")
    text = "study: try\nstrategies: [single]\ndata: beside_the_study:data\nmodel: beside_the_study:{}\n"
    (folder / "study.yaml").write_text(text.format("model"))
    study = Study.load(folder / "study.yaml", for_running=True)
    assert study.rows[0].settings.model == "beside_the_study:model"
    (folder / "study.yaml").write_text(text.format("modell"))
    Study.load(folder / "study.yaml")  # a report needs no code
    with pytest.raises(ConfigError) as caught:
        Study.load(folder / "study.yaml", for_running=True)
    (line,) = caught.value.problems
    assert 'study.yaml:4:8: model: model "beside_the_study:modell": the module beside_the_study has no' in line
    assert 'did you mean "beside_the_study:model"?' in line


def test_a_function_that_is_written_into_a_module_later_is_seen_by_the_same_process(tmp_path) -> None:
    study, module = tmp_path / "study.yaml", tmp_path / "grows_in_a_notebook.py"
    study.write_text("study: try\nstrategies: [single]\nmodel: grows_in_a_notebook:second\n")
    module.write_text("def first(shape, classes): ...\n")
    with pytest.raises(ConfigError, match="has no function second"):
        Study.load(study, for_running=True)
    module.write_text("def first(shape, classes): ...\ndef second(shape, classes): ...\n")
    assert Study.load(study, for_running=True).rows[0].label == "single"


def test_a_custom_method_may_lie_beside_the_study(tmp_path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "method_beside_the_study.py").write_text("from dpwa import GoSGD\nclass Mine(GoSGD): ...\n")
    (folder / "study.yaml").write_text("study: try\nstrategies: ['method_beside_the_study:Mine']\n")
    assert Study.load(folder / "study.yaml", for_running=True).rows[0].settings.nodes == 4
